"""The state of a run from its log, as fast as the log can be read; a snapshot, where there is one, spares the start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from resia.events import Logged
from resia.events.errors import UsageError
from resia.replay.fold import fold
from resia.replay.state import RunState

from .bus import Bus
from .lineage import ancestry
from .snapshots import Snapshot, Snapshots

SNAPSHOT_EVERY = 20_000  # events: less takes less time to fold than to keep
_FOLD_AT_ONCE = 1000  # few enough to be in the processor's cache still, enough to change each map seldom


async def rebuild(
    bus: Bus, run: str, at: int | None = None, snapshots: Snapshots | None = None, every: int = SNAPSHOT_EVERY
) -> RunState:
    """State of `run` after event `at`, or after its present last; a fork's includes what it inherits.

    `snapshots` is a cache to begin from, and to leave the state in when `every` or more events were folded; without it,
    every event is folded. A fork is always folded from its log and its ancestors': a snapshot would not tell that one
    of these changed. UsageError when there is no event `at`.
    """
    last = await bus.last_sequence(run)
    if at is not None and not 1 <= at <= last:
        raise UsageError(f"run '{run}' has events 1 to {last}; there is no event {at}")
    end = last if at is None else at
    with collector_paused():
        found = await _restored(bus, run, end, snapshots) if snapshots else None
        state = found.state if found else (await ancestry(bus, run)).origin
        after, leaf = (state.sequence, found.leaf) if found else (0, "")
        pending: list[Logged] = []
        async with aclosing(bus.batches(run, after, until=end)) as batches:
            async for batch in batches:
                pending += batch
                if len(pending) >= _FOLD_AT_ONCE or pending[-1].sequence >= end:
                    state, leaf, pending = fold(pending, state), pending[-1].leaf, []
        if snapshots and end - after >= every and not _is_fork(state):
            snapshots.save(run, Snapshot(state, leaf))
    return state


async def _restored(bus: Bus, run: str, last: int, snapshots: Snapshots) -> Snapshot | None:
    """The snapshot of `run`, where it ends no later than event `last` and with the event that the log holds there."""
    found = snapshots.load(run)
    if found is None or not 1 <= found.state.sequence <= last:
        return None
    async for fact in bus.read(run, after=found.state.sequence - 1):
        return found if fact.leaf == found.leaf else None
    return None


def _is_fork(state: RunState) -> bool:
    return state.request is not None and state.request.parent is not None


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without rounds of the garbage collector: facts and states cannot form cycles, and a round visits them all."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

"""Reading a run back: its facts, folded to any event. Own ephemeral consumers; a run is never disturbed."""

from __future__ import annotations

from typing import NamedTuple

from resia.events import Logged
from resia.events.errors import UsageError
from resia.replay.fold import fold
from resia.replay.fork import Segment, lineage, owner_of
from resia.replay.state import RunState

from .bus import Bus
from .lineage import Ancestry, ancestry_of
from .rebuild import rebuild
from .store import Store, opened, require_run, require_whole
from .witness import hold


class Log(NamedTuple):
    """A run's log as it stands: every fact of its own in order, after `ancestry.origin`, which a fork inherits."""

    run: str
    facts: tuple[Logged, ...]
    ancestry: Ancestry = Ancestry()

    @property
    def origin(self) -> RunState:
        """State before the first event: the parent's at the fork, or nothing."""
        return self.ancestry.origin

    def at(self, sequence: int | None = None) -> RunState:
        """State after event `sequence` (None: the last; 0 of a fork: what it inherits).

        Raises UsageError when there is no such event.
        """
        if sequence is None:
            return fold(self.facts, self.origin)
        first = 0 if self.ancestry.parents else 1
        if not first <= sequence <= len(self.facts):
            raise UsageError(f"run '{self.run}' has events 1 to {len(self.facts)}; there is no event {sequence}")
        return fold(self.facts[:sequence], self.origin)

    @property
    def lineage(self) -> tuple[Segment, ...]:
        """Which run took which decisions of this history, the first run first."""
        return lineage(self.run, self.ancestry.parents)

    def decision_event(self, iteration: int) -> int:
        """Number of the DecisionMade of `iteration`; UsageError when there is none, or when an ancestor took it."""
        state = self.at()
        numbers = {at.decision.iteration: at.sequence for at in state.decisions}
        if iteration not in numbers:
            offer = f"take one from 1 to {state.iteration}" if state.iteration else "it has not decided anything yet"
            raise UsageError(f"in run '{self.run}' there is no iteration {iteration}: {offer}")
        if numbers[iteration] == 0:
            owner = owner_of(self.lineage, iteration)
            raise UsageError(
                f"run '{self.run}' has iteration {iteration} from run '{owner}': write {owner}@{iteration}"
            )
        return numbers[iteration]


async def read_log(bus: Bus, run: str) -> Log:
    """Every fact of `run` up to now, and what it inherits; UnknownName with the nearest runs when there is none."""
    await require_run(bus, run)
    facts = tuple([fact async for fact in bus.read(run)])
    return Log(run, facts, await ancestry_of(bus, facts[0]) if facts else Ancestry())


async def load(store: Store, run: str) -> Log:
    """`read_log` over a store that is opened for it; Tampered when the log is shorter than it was seen to be."""
    seen = store.witness(run).seen()  # before the log is read: a live run goes on meanwhile
    async with opened(store) as bus:
        log = await read_log(bus, run)
    hold(seen, len(log.facts), log.facts[seen.sequence - 1 :] if seen else ())
    return log


async def state_of(store: Store, run: str) -> RunState:
    """The state of `run` after its last event: what `load` folds to, from the store's snapshot where that is the log's.

    For looking at a run. Whoever checks one loads its log. Raises as `load` does.
    """
    async with opened(store) as bus:
        return await present_state(store, bus, run)


async def present_state(store: Store, bus: Bus, run: str) -> RunState:
    """`state_of` over a connection that is there."""
    await require_whole(store, bus, run)
    return await rebuild(bus, run, snapshots=store.snapshots())

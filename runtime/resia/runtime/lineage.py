"""The state that a run begins with: nothing, or its parent's at the fork, through any number of ancestors.

Every ancestor's part of the history is read again and its Merkle root compared with the one that its child recorded.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import NamedTuple

from resia.events import Fact, Logged, Parent
from resia.events.errors import Tampered, UsageError
from resia.events.merkle import root
from resia.replay.fold import evolve
from resia.replay.fork import inherit, parent_of
from resia.replay.state import RunState

from .bus import Bus
from .store import check_not_removed


class Ancestry(NamedTuple):
    """Where a run's history comes from. `parents` are nearest first; `changed` says of each ancestor that is no longer
    what its child began with how it differs, and is empty where all are."""

    origin: RunState = RunState()
    parents: tuple[Parent, ...] = ()
    changed: tuple[str, ...] = ()


async def origin(bus: Bus, run: str) -> RunState:
    """State before the first event of `run`. Reads only the first event unless it names a parent.

    Raises Tampered when an ancestor's history is no longer what the run began with: nothing may build on it.
    """
    first = await _first(bus, run)
    return await origin_of(bus, first) if first else RunState()


async def origin_of(bus: Bus, first: Logged) -> RunState:
    """`origin` of the run whose first message is `first`."""
    found = await ancestry_of(bus, first)
    if found.changed:
        raise Tampered(first.sequence, found.changed[0])
    return found.origin


async def ancestry(bus: Bus, run: str) -> Ancestry:
    """Everything before the first event of `run`; a changed ancestor is named and not refused."""
    first = await _first(bus, run)
    return await ancestry_of(bus, first) if first else Ancestry()


async def ancestry_of(bus: Bus, first: Logged) -> Ancestry:
    """`ancestry` of the run whose first message is `first`; UsageError when an ancestor's log is not here."""
    parent = parent_of(first)
    if parent is None or not isinstance(first, Fact):
        return Ancestry()
    entry = await bus.find_run(parent.run)
    if entry is None:
        raise UsageError(
            f"the log of '{parent.run}', which '{first.envelope.run}' is a fork of, is not here: restore or import it"
        )
    check_not_removed(entry)
    above = await ancestry(bus, parent.run)
    state, leaves = above.origin, list[str]()
    async with aclosing(bus.read(parent.run)) as facts:
        async for fact in facts:
            state = evolve(state, fact)
            leaves.append(fact.leaf)
            if fact.sequence == parent.sequence:
                break
    changed = _difference(parent, leaves)
    return Ancestry(inherit(state), (parent, *above.parents), (*changed, *above.changed))


async def _first(bus: Bus, run: str) -> Logged | None:
    """A run's first message, None when it has none yet."""
    async with aclosing(bus.read(run)) as facts:
        return await anext(facts, None)


def _difference(parent: Parent, leaves: list[str]) -> tuple[str, ...]:
    """How the parent's events differ from those that the child recorded; empty where they do not."""
    if len(leaves) < parent.sequence:
        return (f"run '{parent.run}' has {len(leaves)} events left of the {parent.sequence} that its fork began with",)
    if (found := root(leaves)) != parent.merkle_root:
        what = f"events 1 to {parent.sequence} of run '{parent.run}' are not those that its fork began with"
        return (f"{what}: their root is {found}, recorded is {parent.merkle_root}",)
    return ()

"""The state that a run begins with: nothing, or its parent's at the fork, through any number of ancestors."""

from __future__ import annotations

from resia.replay.fold import evolve
from resia.replay.fork import inherit, parent_of
from resia.replay.state import RunState

from .bus import Bus


async def origin(bus: Bus, run: str) -> RunState:
    """State before the first event of `run`. Reads only the first event unless it names a parent."""
    async for first in bus.read(run):
        parent = parent_of(first)
        if parent is None:
            return RunState()
        state = await origin(bus, parent.run)
        async for fact in bus.read(parent.run):
            state = evolve(state, fact)
            if fact.sequence == parent.sequence:
                break
        return inherit(state)
    return RunState()

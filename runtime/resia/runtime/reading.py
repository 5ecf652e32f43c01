"""Reading a run back: its facts, folded to any event. Own ephemeral consumers; a run is never disturbed."""

from __future__ import annotations

from typing import NamedTuple

from resia.events import Logged
from resia.events.errors import UsageError
from resia.replay.fold import fold
from resia.replay.state import RunState

from .bus import Bus
from .store import Store, opened, require_run


class Log(NamedTuple):
    """A run's log as it stands: every fact in order."""

    run: str
    facts: tuple[Logged, ...]

    def at(self, sequence: int | None = None) -> RunState:
        """State after event `sequence` (None: the last); UsageError when there is no such event."""
        if sequence is None:
            return fold(self.facts)
        if not 1 <= sequence <= len(self.facts):
            raise UsageError(f"run '{self.run}' has events 1 to {len(self.facts)}; there is no event {sequence}")
        return fold(self.facts[:sequence])


async def read_log(bus: Bus, run: str) -> Log:
    """Every fact of `run` up to now; UnknownName with the nearest runs when there is none."""
    await require_run(bus, run)
    return Log(run, tuple([fact async for fact in bus.read(run)]))


async def load(store: Store, run: str) -> Log:
    """`read_log` over a store that is opened for it."""
    async with opened(store) as bus:
        return await read_log(bus, run)

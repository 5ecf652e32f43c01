"""Seconds of a run: counted while a session follows it, kept beside the log, and made a fact once they are spent.

No rule reads a clock, so the session that notices writes `budget-spent`, and the rules stop by that. What was counted
is kept in the store between sessions, as time that nobody ran counts for nothing; it is no part of the log, and a run
whose count was lost, in another store say, begins to count anew.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from resia.events import BudgetSpent, Fact
from resia.replay.identity import decided

from .bus import Bus
from .resources import package_version
from .store import Store
from .worker import Clerk, Follower

KEEP_S = 2.0  # between two writes of the count: what a session that is killed may lose


class Stopwatch:
    """Seconds so far, those of earlier sessions included. `path` holds them between sessions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = _read(path)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def keep(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(".new")
        written.write_text(f"{self.seconds:.3f}\n")
        written.replace(self._path)


def _read(path: Path) -> float:
    try:
        return float(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


def forget_seconds(store: Store, run: str) -> None:
    """A new run may have the name of one that was removed."""
    (store.seconds / run).unlink(missing_ok=True)


async def guard_seconds(bus: Bus, run: str, store: Store, limit: float | None, follower: Follower) -> None:
    """Record that `limit` seconds are spent once they are; without a limit there is nothing to do."""
    if limit is None:
        return
    watch = Stopwatch(store.seconds / run)
    try:
        while (left := limit - watch.seconds) > 0:
            await asyncio.sleep(min(left, KEEP_S))
            watch.keep()
    finally:
        watch.keep()
    state = await follower.reached(1)
    if state.ending is None and not state.overdrawn:
        await _record(bus, run, BudgetSpent("seconds", limit, round(watch.seconds, 3)))


async def _record(bus: Bus, run: str, event: BudgetSpent) -> None:
    """Caused by the run's first event; another session's word for it stands."""
    clerk = Clerk(run, "user", "cli", package_version(), time.time)
    async for first in bus.read(run):
        if not isinstance(first, Fact):
            return  # the first message is no event, so there is no run to stop
        draft = clerk.draft(first.envelope.id, first.sequence, event, decided("user", first.envelope.type), 0)
        await bus.append(run, [draft])
        return

"""What one process performs, whichever runs ask: one request at a time, and nothing new once it is to leave.

A model, a policy and a chamber are one a process, and whoever uses them changes them: an adapter is loaded into the
model's own layers. So requests of two runs never use them at once. Runs take turns in the order in which they asked.
Knows nothing of the bus, of roles or of signals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from resia.events.errors import WorkerError

from .config import MAX_RUNS

BUSY = 0.1  # of the time that nothing was heard: who computes that much is not hung, as scoring says nothing of itself


class Stalled(WorkerError):
    """What is performed shows no progress, and its thread cannot be stopped: the process has to end."""


class Shift:
    """Shared by all that works in a process. `stalled_s`: seconds without progress that one step may take; None: any
    number."""

    def __init__(self, stalled_s: float | None = None, max_runs: int = MAX_RUNS) -> None:
        self.stalled_s = stalled_s
        self.runs = asyncio.Semaphore(max_runs)  # served at once: others wait until one has ended
        self.threads = 0  # that perform now; they outlive whoever waits for them
        self._leaving = asyncio.Event()
        self._turn = asyncio.Lock()
        self.waiting = 0  # runs that have asked for a turn
        self._moved_at: float | None = None

    def is_over(self) -> bool:
        """Nothing new is to be taken."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Finish what is in hand and take nothing new."""
        self._leaving.set()

    async def left(self) -> None:
        """Wait until it is to leave."""
        await self._leaving.wait()

    @property
    def busy(self) -> bool:
        """Whoever asked for a turn now would have to wait."""
        return self._turn.locked() or self.waiting > 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The process's one performance, first come, first served."""
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def step(self, batches: Iterator[Sequence[msgspec.Struct]]) -> Sequence[msgspec.Struct] | None:
        """The next of `batches`, made in a thread; None after the last. Raises Stalled when it makes no progress."""
        self.progressed()
        thread, used_s = asyncio.ensure_future(asyncio.to_thread(self._next, batches)), time.process_time()
        try:
            while not (await asyncio.wait([thread], timeout=self._left_s()))[0]:
                if self.stalled_s is None or self.quiet_s < self.stalled_s:
                    continue
                used_s, before_s = time.process_time(), used_s
                if used_s - before_s < BUSY * self.stalled_s:
                    raise Stalled(f"no progress for {self.stalled_s:g} s")
                self.progressed()
            return thread.result()
        finally:
            thread.cancel()

    def _left_s(self) -> float | None:
        """Seconds until it is time to look whether anything moved."""
        return None if self.stalled_s is None else max(self.stalled_s - self.quiet_s, 0.0)

    def _next(self, batches: Iterator[Sequence[msgspec.Struct]]) -> Sequence[msgspec.Struct] | None:
        self.threads += 1
        try:
            return next(batches, None)
        finally:
            self.threads -= 1

    def progressed(self) -> None:
        """What is performed has come further."""
        self._moved_at = asyncio.get_running_loop().time()

    @property
    def quiet_s(self) -> float:
        """Seconds since what is performed came further."""
        return 0.0 if self._moved_at is None else asyncio.get_running_loop().time() - self._moved_at

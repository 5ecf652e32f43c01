"""One process that serves every active run: which, how many at once, and what becomes of one that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress

import structlog

from resia.events.errors import ResiaError, WorkerError
from resia.events.ids import sha256

from .bus import Bus
from .protocol import RunEntry
from .shift import Shift
from .worker import Clerk, Role, Worker, cancelled

RETRY_S, RETRY_MOST_S = 1.0, 60.0  # until a run that was given up is tried again
_log = structlog.get_logger()


async def serve_runs(bus: Bus, role: Role, clerk_of: Callable[[str], Clerk], shift: Shift | None = None) -> None:
    """Serve every active run, now and as they appear, until the shift is over."""
    shift, serving = shift or Shift(), dict[str, asyncio.Task[None]]()

    def begin(entry: RunEntry) -> None:
        served = entry.run in serving and not serving[entry.run].done()
        if entry.status == "active" and not served:
            serving[entry.run] = group.create_task(_serve_one(bus, role, clerk_of(entry.run), shift))

    async def attend() -> None:
        for entry in preferred(clerk_of("").worker, await bus.runs()):
            begin(entry)
        async with aclosing(bus.watch_runs()) as entries:
            async for entry in entries:
                begin(entry)

    async with asyncio.TaskGroup() as group:
        attending = group.create_task(attend())
        try:
            await shift.left()
            await cancelled([attending])
            await asyncio.gather(*serving.values())
        finally:
            await cancelled([attending, *serving.values()])


def preferred(worker: str, entries: Sequence[RunEntry]) -> list[RunEntry]:
    """The runs in an order of the worker's own, so that those who may serve a few only do not all choose the same."""
    return sorted(entries, key=lambda entry: sha256(f"{worker}/{entry.run}".encode()))


async def _serve_one(bus: Bus, role: Role, clerk: Clerk, shift: Shift) -> None:
    """One run among many: what is wrong with it is logged and harms no other, and it is tried again."""
    wait = RETRY_S
    async with shift.runs:
        while not shift.is_over() and await _served(Worker(bus, role, clerk, shift), clerk.run, wait):
            with suppress(TimeoutError):
                await asyncio.wait_for(shift.left(), wait)
            wait = min(2 * wait, RETRY_MOST_S)


async def _served(worker: Worker, run: str, wait: float) -> bool:
    """Serve a run to its end; whether it was given up before."""
    try:
        await worker.serve()
    except* WorkerError:
        raise  # it is the worker that is wrong, whatever the run
    except* ResiaError as group:
        for cause in group.exceptions:
            _log.error("run given up", run=run, error=str(cause), again_s=wait)
        given_up = True
    else:
        given_up = False
    return given_up

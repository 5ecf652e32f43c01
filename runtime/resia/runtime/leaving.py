"""How a worker process ends: with its run, drained on SIGTERM, or at once.

On SIGTERM it takes nothing new and finishes what it has in hand; when that takes longer than the grace, on a second
SIGTERM, or on Ctrl-C it gives back what it has in hand and goes. A thread that performs cannot be stopped, so the
process then ends without waiting for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog

from resia.events.errors import ResiaError

from .cli_options import INTERRUPTED
from .config import MAX_RUNS
from .shift import Shift
from .worker import cancelled

GRACE_S = 25.0  # Kubernetes kills 30 s after SIGTERM, systemd 90 s
TERMINATED = 128 + signal.SIGTERM


class Stay(NamedTuple):
    """How long a process may go on: seconds to finish what is in hand after SIGTERM, seconds without progress (None:
    as its role has it), and runs served at once."""

    grace_s: float = GRACE_S
    stalled_s: float | None = None
    max_runs: int = MAX_RUNS


async def until_told(serve: Callable[[], Coroutine[Any, Any, None]], shift: Shift, grace_s: float) -> int:
    """Serve; the exit code: 0 when that ended by itself, 143 after SIGTERM, 130 after Ctrl-C.

    Raises what `serve` raises, but ends the process by itself, with code 1, while a thread performs.
    """
    loop, task = asyncio.get_running_loop(), asyncio.create_task(serve())
    ending: list[asyncio.Task[None]] = []
    codes: list[int] = []

    def now(code: int) -> None:
        codes.append(code)
        if not ending:
            ending.append(loop.create_task(cancelled([task])))

    def drain() -> None:
        if shift.is_over() or grace_s <= 0:
            now(TERMINATED)
        else:
            structlog.get_logger().info("leaving", grace_s=grace_s)
            codes.append(TERMINATED)
            shift.leave()
            loop.call_later(grace_s, now, TERMINATED)

    loop.add_signal_handler(signal.SIGTERM, drain)
    loop.add_signal_handler(signal.SIGINT, now, INTERRUPTED)
    try:
        with _cut_short(codes):
            await task
    except* ResiaError as group:
        if not shift.threads:
            raise
        for cause in leaves(group):
            structlog.get_logger().error("failed", error=f"{cause}")
        codes = [1]
    code = codes[0] if codes else 0
    if shift.threads:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _cut_short(codes: list[int]) -> Iterator[None]:
    """A cancellation that a signal led to is an end like any other."""
    try:
        yield
    except asyncio.CancelledError:
        if not codes:
            raise


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors inside a group of groups."""
    return [
        leaf
        for cause in group.exceptions
        for leaf in (leaves(cause) if isinstance(cause, BaseExceptionGroup) else [cause])
    ]

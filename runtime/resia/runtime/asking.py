"""How a performance asks another role: a request of its own in the log, and the fold watched until it is answered.

Collaborators: the worker loop, which hands a `Line` to each performance, and `replaying`, which answers from the log.
Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Protocol, TypeVar

import structlog

from resia.events import ASKED, NAMES, Event
from resia.events.errors import BusError
from resia.replay.state import RunState

T = TypeVar("T")
LONG_S = 60.0  # a wait of so long is told, and then again
_log = structlog.get_logger()


class Follows(Protocol):
    """The fold of a run, as it grows."""

    @property
    def state(self) -> RunState: ...

    async def until(self, holds: Callable[[RunState], bool], timeout_s: float | None = None) -> RunState | None:
        """The first state from now on for which `holds`; None where none came in time."""
        ...


class AskingLine:
    """Implements `resia.agents.ports.Line` for one request under way. `ask` is called in the thread that performs it;
    `append` writes an event for this request, and writes it once; `waits` is told now and then that it waits."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        follower: Follows,
        append: Callable[[Event], Awaitable[None]],
        waits: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._follower, self._append, self._waits = loop, follower, append, waits
        self._cancel: Callable[[], object] = lambda: None
        self._closed = False

    def ask(self, event: Event, answered: Callable[[RunState], T | None]) -> T:
        """See `resia.agents.ports.Line`."""
        if (known := answered(self._follower.state)) is not None:
            return known
        asking = asyncio.run_coroutine_threadsafe(self._ask(event, answered), self._loop)
        self._cancel = asking.cancel
        if self._closed:
            asking.cancel()
        try:
            return asking.result()
        except CancelledError as cause:
            raise BusError(f"{NAMES[type(event)]} was not waited for: this worker is ending") from cause

    def close(self) -> None:
        """End the wait, if there is one: the thread must not outlive the work that it is for."""
        self._closed = True
        self._cancel()

    async def _ask(self, event: Event, answered: Callable[[RunState], T | None]) -> T:
        await self._append(event)
        kind, waited = NAMES[type(event)], 0.0
        while (state := await self._follower.until(_ended_or(answered), LONG_S)) is None:
            waited += LONG_S
            self._waits()
            _log.warning(f"no {ASKED.get(type(event), 'worker')} has answered", asked=kind, waited_s=waited)
        if (answer := answered(state)) is None:
            raise BusError(f"the run ended before {kind} was answered")
        return answer


def _ended_or(answered: Callable[[RunState], T | None]) -> Callable[[RunState], bool]:
    return lambda state: state.ending is not None or answered(state) is not None


class RecordedLine:
    """Answers from a log that is whole: what was asked then, and what was answered."""

    def __init__(self, last: Callable[[], RunState]) -> None:
        self._last = last

    def ask(self, event: Event, answered: Callable[[RunState], T | None]) -> T:
        """See `resia.agents.ports.Line`. Raises BusError for what the log has no answer to."""
        if (known := answered(self._last())) is None:
            raise BusError(f"the log has no answer to this {NAMES[type(event)]}")
        return known

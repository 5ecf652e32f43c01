"""What is seen of a worker's work without asking the work: a connection that tells observers of all that goes over it.

`ObservedBus` shares the connection of another and is used in its place. Where nobody asked to observe there is none,
and nothing here is imported by the work itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from resia.events import Draft, Logged, Skipped
from resia.events.errors import BusError, FenceMoved

from .bus import Bus, Durable, Work
from .protocol import Appended, position

LOOK_S = 5.0  # between two questions for a log's end


class Observer:
    """Hears of the work as it goes; every method may do nothing. Called in the event loop: it must not wait."""

    def read(self, run: str, fact: Logged) -> None:
        """`fact` was read, and is about to be folded."""

    def folded(self, run: str, sequence: int) -> None:
        """The fold has reached `sequence`."""

    def left(self, run: str) -> None:
        """`run` is not followed any more."""

    def end_seen(self, run: str, last: int) -> None:
        """The log of `run` had `last` events."""

    def appended(self, drafts: Sequence[Draft], already: bool, seconds: float) -> None:
        """One batch was acknowledged after `seconds`; `already`: it had been there."""

    def refused(self, moved: bool, seconds: float) -> None:
        """A batch was not appended: another decision came first (`moved`), or the log did not take it."""

    def taken(self, deliveries: int) -> None:
        """Work came, for the `deliveries`-th time."""

    def handled(self, outcome: str) -> None:
        """The work in hand is acknowledged (`wrote`, `nothing`, `skipped`), or was let go (`failed`)."""


class ObservedBus(Bus):
    """A connection whose reading, writing and work `observers` hear of."""

    def __init__(self, bus: Bus, observers: Sequence[Observer]) -> None:
        self.__dict__.update(vars(bus))  # one connection, with everything that was set up for it
        self._observers = tuple(observers)
        self._wrote: dict[str, int] = {}  # appends by run: whether the work in hand led to any

    async def append(self, run: str, drafts: Sequence[Draft], fence: int | None = None) -> Appended:
        """See Bus."""
        started = time.perf_counter()
        try:
            appended = await super().append(run, drafts, fence)
        except BusError as cause:
            for each in self._observers:
                each.refused(isinstance(cause, FenceMoved), time.perf_counter() - started)
            raise
        self._wrote[run] = self._wrote.get(run, 0) + 1
        for each in self._observers:
            each.appended(drafts, appended.already, time.perf_counter() - started)
            each.end_seen(run, appended.sequence)
        return appended

    async def read(self, run: str, after: int = 0, follow: bool = False) -> AsyncGenerator[Logged, None]:
        """See Bus. What is followed is observed; its end is asked for now and then, which shows a fold that lags."""
        looking = asyncio.create_task(self._look(run)) if follow else None
        observers = self._observers if follow else ()
        try:
            async with aclosing(super().read(run, after, follow)) as facts:
                async for fact in facts:
                    for each in observers:
                        each.read(run, fact)
                    yield fact
                    for each in observers:
                        each.folded(run, fact.sequence)
        finally:
            if looking is not None:
                looking.cancel()
            for each in observers:
                each.left(run)

    async def _look(self, run: str) -> None:
        while True:
            with suppress(BusError):  # no server for the moment: it is asked again
                last = await super().last_sequence(run)
                for each in self._observers:
                    each.end_seen(run, last)
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def durable(self, run: str, role: str, types: Sequence[str]) -> AsyncIterator[Durable]:
        """See Bus."""
        async with super().durable(run, role, types) as durable:
            watched = _WatchedDurable(durable, self._observers, lambda: self._wrote.get(run, 0))
            try:
                yield watched
            finally:
                watched.let_go()


class _WatchedDurable(Durable):
    """A durable whose work is told of. One message is in hand at a time; one that was neither done nor given back when
    the next is asked for was let go."""

    def __init__(self, durable: Durable, observers: Sequence[Observer], wrote: Callable[[], int]) -> None:
        self.__dict__.update(vars(durable))
        self._observers, self._wrote = tuple(observers), wrote
        self._in_hand: _Watched | None = None

    async def take(self, timeout: float | None = None) -> Work | None:  # noqa: ASYNC109
        """See Durable."""
        self.let_go()
        if (work := await super().take(timeout)) is None:
            return None
        for each in self._observers:
            each.taken(position(work.message.reply).deliveries)
        before, watched = self._wrote(), _Watched(*work)

        def settled(done: bool) -> None:
            self._in_hand = None
            outcome = "skipped" if isinstance(work.fact, Skipped) else "wrote" if self._wrote() > before else "nothing"
            for each in self._observers:
                each.handled(outcome if done else "failed")

        watched.settled, self._in_hand = settled, watched
        return watched

    def let_go(self) -> None:
        """What is in hand, if anything, was not done."""
        if self._in_hand is not None:
            self._in_hand.settled(False)


class _Watched(Work):
    """Work that tells what became of it, once."""

    settled: Callable[[bool], None]

    async def ack(self) -> None:
        """See Work."""
        await super().ack()
        self.settled(True)

    async def give_back(self) -> None:
        """See Work."""
        await super().give_back()
        self.settled(False)

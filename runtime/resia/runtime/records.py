"""Messages of a log exactly as they are stored: number, subject, bytes, and the server's time.

What leaves a server and comes back must be the same bytes, readable or not, so nothing here decodes an event unless
it is asked to. Reading uses an ephemeral consumer of its own, on the server's plain services.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from resia.events import ENDINGS, NAMES, Fact, Logged, Parent, RunCompleted, merkle
from resia.events import subjects as names
from resia.events.errors import BusError, Tampered, UsageError
from resia.replay.fork import parent_of

from .bus import Bus
from .protocol import logged, position, pushed_to
from .store import require_run

HEARTBEAT_S = 5.0
QUIET_S = 30.0  # a server that says nothing for so long is not coming back

Progress = Callable[[str, int, int], None]  # what, done, of how many


class Record(msgspec.Struct, frozen=True):
    """One stored message. `time_ns` is when the server stored it, nanoseconds since the epoch."""

    sequence: int
    subject: str
    data: bytes
    time_ns: int = 0

    @property
    def leaf(self) -> str:
        return merkle.leaf(self.sequence, self.subject, self.data)

    def logged(self, run: str) -> Logged:
        """The event, as every reader of the log of `run` sees it."""
        return logged(run, self.sequence, self.subject, self.data)


class Link(NamedTuple):
    """A run of a lineage: its first `events` events, and the parent that its first one names."""

    run: str
    events: int
    parent: Parent | None


class Tally:
    """What a log adds up to: count, Merkle root of all leaves, a hash of the server's times, and how it ended."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.leaves: list[str] = []
        self.status: str | None = None
        self._times = hashlib.sha256()

    def take(self, record: Record) -> None:
        self.leaves.append(record.leaf)
        self._times.update(record.time_ns.to_bytes(8, "big"))
        if self.status is None:
            self.status = _ending(self._run, record)

    @property
    def events(self) -> int:
        return len(self.leaves)

    @property
    def root(self) -> str:
        return merkle.root(self.leaves)

    @property
    def times(self) -> str:
        return self._times.hexdigest()


def _ending(run: str, record: Record) -> str | None:
    """'completed' or 'failed' when this event ends its run."""
    if not any(f".{NAMES[cls]}." in record.subject for cls in ENDINGS):
        return None
    fact = record.logged(run)
    if isinstance(fact, Fact) and isinstance(fact.event, ENDINGS):
        return "completed" if isinstance(fact.event, RunCompleted) else "failed"
    return None


async def records(bus: Bus, run: str, last: int | None = None) -> AsyncGenerator[Record, None]:
    """Messages 1 to `last` (None: the present end). Tampered when one is missing, BusError when they stop coming."""
    end = await bus.last_sequence(run) if last is None else last
    expected = 1
    for source in (_in_bulk, _pushed):
        if expected > end:
            return
        async with aclosing(source(bus, run, expected, end)) as found:
            async for record in found:
                if record.sequence != expected:
                    raise Tampered(expected, f"it is missing, the next is {record.sequence}")
                expected += 1
                yield record
                if expected > end:
                    return


async def _in_bulk(bus: Bus, run: str, first: int, end: int) -> AsyncGenerator[Record, None]:
    """A long log, as far as there is bulk reading."""
    async with aclosing(bus.stored(run, first - 1, end)) as chunks:
        async for chunk in chunks:
            for sequence, subject, data, reply in chunk:
                yield Record(sequence, subject, data, position(reply.decode()).time_ns)


async def _pushed(bus: Bus, run: str, first: int, _: int) -> AsyncGenerator[Record, None]:
    """Messages from `first` on, without end."""
    inbox = bus.inbox()
    async with bus.listen(inbox) as heard:
        await _deliver(bus, run, first, inbox)
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    message = await anext(heard)
            except TimeoutError:
                raise BusError(f"read the log of run '{run}': nothing came for {QUIET_S:g} s") from None
            if message.subject == inbox:  # the server asks whether we keep up
                if message.reply:
                    await bus.publish(message.reply, b"")
                continue
            sequence, time_ns, _ = position(message.reply)
            yield Record(sequence, message.subject, message.data, time_ns)


async def _deliver(bus: Bus, run: str, first: int, inbox: str) -> None:
    """Have the server send the stream to `inbox`, by a consumer that it forgets once nobody listens."""
    stream = names.stream(run)
    asked = pushed_to(inbox, stream, first, HEARTBEAT_S)
    await call(bus, f"CONSUMER.CREATE.{stream}", asked, f"read the log of run '{run}'")


async def call(bus: Bus, service: str, data: bytes, what: str) -> dict[str, Any]:
    """Answer of a JetStream service; BusError with what the server said when it refuses."""
    answer: dict[str, Any] = msgspec.json.decode(await bus.request(f"$JS.API.{service}", data), type=dict)
    if "error" in answer:
        raise BusError(f"{what}: {answer['error'].get('description', answer['error'])}")
    return answer


async def lineage(bus: Bus, run: str) -> tuple[Link, ...]:
    """`run` after all its ancestors, the oldest first, each as long as it is now."""
    links: list[Link] = []
    name: str | None = run
    while name is not None:
        await require_run(bus, name)
        if any(link.run == name for link in links):
            raise Tampered(1, f"run '{name}' is its own ancestor")
        last = await bus.last_sequence(name)
        if last == 0:
            raise UsageError(f"run '{name}' has no event yet: start it again under another name")
        parent = parent_of((await anext(records(bus, name, 1))).logged(name))
        links.append(Link(name, last, parent))
        name = parent.run if parent else None
    return tuple(reversed(links))


async def tally(bus: Bus, run: str, last: int | None = None) -> Tally:
    """The log's first `last` messages added up."""
    found = Tally(run)
    async for record in records(bus, run, last):
        found.take(record)
    return found

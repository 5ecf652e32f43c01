"""How a log is read: the start of a long one in bulk, the rest as the client library brings it, in order and whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from itertools import chain, repeat
from typing import Generic, Protocol, TypeVar

import structlog

from resia.events import Logged
from resia.events import subjects as names

from .bulk import Address, BulkUnavailable, Stored, stored
from .bulk_process import elsewhere
from .protocol import in_order, logged

BULK_FROM = 2000  # a shorter log is read before a second connection is made
HELPED_FROM = 50_000  # a shorter log is read before a second process has begun
ARRIVALS_LIMIT = 4096  # messages that wait to be folded
ARRIVALS_BYTES = 32 << 20  # or this much of them: a message may have a megabyte
QUIET_S = 1.0
_log = structlog.get_logger()


class _Sized(Protocol):
    data: bytes


_Message = TypeVar("_Message", bound=_Sized)


class Server(Protocol):
    """What reading needs of a connection."""

    async def last_sequence(self, run: str) -> int:
        """Number of the last event of `run`."""
        ...

    def pushed(self, run: str, after: int) -> AsyncGenerator[list[Logged], None]:
        """Every event after number `after`, as it comes; may end at any time."""
        ...

    def bulk_address(self) -> Address | None:
        """Where a plain connection of our own is possible."""
        ...

    def inbox(self) -> str:
        """A subject of our own that nobody uses."""
        ...


async def batches(
    server: Server, run: str, after: int, follow: bool, until: int | None
) -> AsyncGenerator[list[Logged], None]:
    """Events in order from number `after` + 1, as lists that are never empty; see `Bus.batches`."""
    last = await server.last_sequence(run)
    last = last if until is None else min(last, until)
    for bulk in chain([True], repeat(False)):
        if not follow and after >= last:
            return
        async with aclosing(_in_bulk(server, run, after, last) if bulk else server.pushed(run, after)) as source:
            async for arrived in source:
                batch = in_order(arrived, after, None if follow else last)
                if batch:
                    after = batch[-1].sequence
                    yield batch
                if not follow and after >= last:
                    return


async def stored_in_bulk(server: Server, run: str, after: int, last: int) -> AsyncGenerator[list[Stored], None]:
    """A long log from `after` + 1 to `last` or further; less where there is no bulk reading, or no more."""
    address = server.bulk_address()
    if address is None or last - after < BULK_FROM:
        return
    try:
        async with aclosing(stored(address, names.stream(run), after + 1, server.inbox())) as chunks:
            async for chunk in chunks:
                yield chunk
                if chunk[-1].sequence >= last:
                    return
    except BulkUnavailable as cause:
        _log.debug("read on without", run=run, why=str(cause))


async def _in_bulk(server: Server, run: str, after: int, last: int) -> AsyncGenerator[list[Logged], None]:
    address = server.bulk_address()
    if address is None or last - after < HELPED_FROM:
        async with aclosing(stored_in_bulk(server, run, after, last)) as chunks:
            async for chunk in chunks:
                yield [logged(run, sequence, subject, data) for sequence, subject, data, _ in chunk]
        return
    try:
        async with aclosing(elsewhere(address, names.stream(run), after + 1, last, server.inbox())) as frames:
            async for frame in frames:
                yield [logged(run, sequence, subject, data) for sequence, subject, data in frame]
    except BulkUnavailable as cause:
        _log.debug("read on without", run=run, why=str(cause))


class Arrivals(Generic[_Message]):
    """Messages of a subscription as they come, to be taken all at once; holds the client back while nobody does."""

    def __init__(self) -> None:
        self._messages: list[_Message] = []
        self._bytes = 0
        self._come, self._room = asyncio.Event(), asyncio.Event()

    async def put(self, message: _Message) -> None:
        self._messages.append(message)
        self._bytes += len(message.data)
        self._come.set()
        if len(self._messages) >= ARRIVALS_LIMIT or self._bytes >= ARRIVALS_BYTES:
            self._room.clear()
            await self._room.wait()

    async def take(self) -> list[_Message]:
        """What has come since the last call; nothing when nothing comes for a second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await self._come.wait()
        taken, self._messages, self._bytes = self._messages, [], 0
        self._come.clear()
        self._room.set()
        return taken

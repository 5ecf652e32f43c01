"""Reading a long log fast: a plain connection of its own to which the server pushes, split into events as it comes.

The client library spends some 25 us on a message, this 2 us. It speaks as much of the public NATS protocol as one
ephemeral consumer needs, and only where that is plain: no TLS, user and password or nothing. Whatever is not, and
whatever breaks, raises BulkUnavailable between two events; the caller goes on from there with the client library.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec

from resia.events.errors import BusError

from .protocol import position, pushed_to

ANSWER_S = 5.0  # a server that has been silent for so long, heartbeats and all, is given up
_HEARTBEAT_S = 2
_AHEAD_BYTES = 2**24
_CONTROL = b"NATS/1.0 1"  # status 100: flow control or idle heartbeat


# An event as resia publishes it: its subject, where it is acknowledged, its number there, sizes of headers and of all.
_EVENT = re.compile(
    rb"HMSG ([^ ]+) [^ ]+ ([$]JS[.]ACK[.][^. ]+[.][^. ]+[.]\d+[.](\d+)[.]\d+[.]\d+[.]\d+) (\d+) (\d+)\r\n"
)


class BulkUnavailable(BusError):
    """No bulk reading here, or no more: for the caller to go on without it."""


class Address(NamedTuple):
    """A server without TLS. `user` is empty where it asks for none."""

    host: str
    port: int
    user: str = ""
    password: str = ""


class Stored(NamedTuple):
    """A message as the stream holds it. `reply` is what it was delivered with, which also says when it was stored."""

    sequence: int
    subject: str
    data: bytes
    reply: bytes = b""


async def stored(address: Address, stream: str, first: int, inbox: str) -> AsyncGenerator[list[Stored], None]:
    """Messages of `stream` from number `first`, in chunks and without end; `inbox` is free and the user's own.

    Memory is bounded: the server sends on once most of what came before was taken. Raises BulkUnavailable.
    """
    splitter = _Splitter(address)
    try:
        async with asyncio.timeout(ANSWER_S):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: splitter, address.host, address.port
            )
    except (OSError, TimeoutError) as cause:
        raise BulkUnavailable(f"no second connection to {address.host}:{address.port}: {cause}") from cause
    try:
        await splitter.subscribed(inbox)
        splitter.publish(
            f"$JS.API.CONSUMER.CREATE.{stream}",
            pushed_to(f"{inbox}.events", stream, first, _HEARTBEAT_S),
            f"{inbox}.created",
        )
        while True:
            messages, due = await splitter.take()
            if messages:
                yield messages
            for subject in due:
                splitter.publish(subject)
    finally:
        transport.close()


class _Splitter(asyncio.Protocol):
    """Splits what the server sends into messages; keeps them until they are taken."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._rest = b""
        self._messages: list[Stored] = []
        self._due: list[bytes] = []  # flow control to answer once the messages before it are taken
        self._arrived = asyncio.Event()
        self._ready = asyncio.Event()
        self._broken: str | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(f"the connection was lost ({exc})")

    def publish(self, subject: str | bytes, data: bytes = b"", reply: str = "") -> None:
        name = subject.encode() if isinstance(subject, str) else subject
        self._transport.write(b"PUB %b %b %d\r\n%b\r\n" % (name, reply.encode(), len(data), data))

    async def subscribed(self, inbox: str) -> None:
        """Introduce ourselves and listen below `inbox`; returns when the server has said that it agrees."""
        login = {"user": self._address.user, "pass": self._address.password} if self._address.user else {}
        # Both subjects by name: the server sends nothing to one that is only listened to through a wildcard.
        hello = {"verbose": False, "pedantic": False, "headers": True, "lang": "python", "version": "1", **login}
        self._transport.write(
            b"CONNECT %b\r\nSUB %b.created 1\r\nSUB %b.events 2\r\nPING\r\n"
            % (msgspec.json.encode(hello), inbox.encode(), inbox.encode())
        )
        await self._wait(self._ready)

    async def take(self) -> tuple[list[Stored], list[bytes]]:
        """What has come since the last call, and the flow control subjects to answer when it is dealt with."""
        while not self._messages and not self._due:
            await self._wait(self._arrived)
            self._arrived.clear()
        taken = self._messages, self._due
        self._messages, self._due = [], []
        return taken

    async def _wait(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await event.wait()
        except TimeoutError:
            self._break(f"the server was silent for {ANSWER_S:g} s")
        if self._broken is not None and not self._messages:
            raise BulkUnavailable(f"bulk reading: {self._broken}")

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        self._arrived.set()
        self._ready.set()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        try:
            at = self._split(data)
        except (ValueError, IndexError, UnicodeDecodeError, msgspec.MsgspecError) as cause:
            self._break(f"the server said what is not understood ({cause})")
            self._transport.close()
            at = len(data)
        self._rest = data[at:]
        self._arrived.set()

    def _split(self, data: bytes) -> int:
        """Deal with every operation that is all there; where the first that is not begins."""
        at, length, add, event_at = 0, len(data), self._messages.append, _EVENT.match
        new = tuple.__new__  # half of what the type's own costs
        while True:
            event = event_at(data, at)
            if event is None:
                after = self._other(data, at)
                if after < 0:
                    return at
                at = after
                continue
            begin = event.end()
            subject, reply, number, header, size = event.groups()
            after = begin + int(size)
            if length < after + 2:
                return at
            add(new(Stored, (int(number), subject.decode(), data[begin + int(header) : after], reply)))
            at = after + 2

    def _other(self, data: bytes, at: int) -> int:
        """Deal with an operation that brings no event; where the next begins, -1 when it is not all there."""
        end = data.find(b"\r\n", at)
        if end < 0:
            return -1
        fields, body = data[at:end].split(b" "), end + 2
        if fields[0] != b"HMSG" and fields[0] != b"MSG":
            self._operation(*data[at:end].partition(b" ")[::2])
            return body
        after = body + int(fields[-1])
        if len(data) < after + 2:
            return -1
        header = body + int(fields[-2]) if fields[0] == b"HMSG" else body
        reply = fields[3] if len(fields) == (6 if header > body else 5) else b""
        if reply.startswith(b"$JS.ACK."):  # an event that was published with headers
            number = position(reply.decode()).sequence
            self._messages.append(Stored(number, fields[1].decode(), data[header:after], reply))
        else:
            self._control(reply, data[body:header], data[header:after])
        return after + 2

    def _control(self, reply: bytes, header: bytes, answer: bytes) -> None:
        """Flow control, a heartbeat, or the answer to the consumer's creation."""
        if header.startswith(_CONTROL):
            stalled = [line for line in header.split(b"\r\n") if line.lower().startswith(b"nats-consumer-stalled:")]
            self._flow([reply] if reply else [line.partition(b":")[2].strip() for line in stalled])
        elif header:
            self._break(f"the server ended it: {header[:80]!r}")
        elif error := msgspec.json.decode(answer, type=dict[str, Any]).get("error"):
            self._break(f"the server refuses the consumer: {error}")

    def _flow(self, subjects: list[bytes]) -> None:
        """Let the server send on: at once while little is waiting here, else when that is taken."""
        if sum(len(message.data) for message in self._messages) < _AHEAD_BYTES:
            for subject in subjects:
                self.publish(subject)
        else:
            self._due += subjects

    def _operation(self, operation: bytes, rest: bytes) -> None:
        match operation.upper():
            case b"PING":
                self._transport.write(b"PONG\r\n")
            case b"PONG":
                self._ready.set()
            case b"INFO":
                if msgspec.json.decode(rest, type=dict[str, Any]).get("tls_required"):
                    self._break("the server requires TLS")
            case b"-ERR":
                self._break(f"the server refuses: {rest[:120]!r}")
            case b"+OK":
                pass
            case other:
                raise ValueError(f"operation {other[:20]!r}")

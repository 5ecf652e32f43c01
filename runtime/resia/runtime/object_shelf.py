"""Blobs in the JetStream object store of the log's own servers: an object a blob, under its digest, as many copies as
a log has.

Laid out as NATS lays out its object stores (ADR-20), so that other clients read it: the chunks of an object on a
subject of their own, and then what says where they are. Nothing is replaced or deleted. The client's own put needs the
right to purge, and its get grows quadratic with the bytes, so both are done here, by the bus's plain requests: one
chunk at a time, so that no more than one is ever on its way.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from resia.events.errors import BlobError, BusError, UsageError

from .append import passing
from .bus import ACK_TIMEOUT_S as ANSWER_S
from .bus import PATIENCE_S, RECONNECT_WAIT_S, Bus, reach
from .permissions import BLOBS, JETSTREAM, READER, Access

CHUNK_BYTES = 512 << 10  # a message has 1 MB at most, and is sent back in base64
_STREAM = f"OBJ_{BLOBS}"
_GET = f"$JS.API.STREAM.MSG.GET.{_STREAM}"
_NO_MESSAGE, _NO_STREAM, _OTHER_SETTINGS, _WRONG_LAST_SEQUENCE = 10037, 10059, 10058, 10071
_Done = TypeVar("_Done")


async def create_bucket(bus: Bus, access: Access) -> None:
    """Make the object store where `access` names it for blobs; needs the admin's login. One that is there stays."""
    if access.blobs != JETSTREAM:
        return
    config = {
        "name": _STREAM,
        "subjects": [f"$O.{BLOBS}.C.>", f"$O.{BLOBS}.M.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": access.replicas,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "max_age": 0,
    }
    answer = await _asked(bus, f"$JS.API.STREAM.CREATE.{_STREAM}", msgspec.json.encode(config))
    if answer.code != _OTHER_SETTINGS:
        answer.require("create the object store of blobs")


class ObjectShelf:
    """Implements Shelf in the object store of `access`'s servers, with the strongest login that is in it."""

    def __init__(self, access: Access) -> None:
        self.place = "the log's object store"
        login = "admin" if "admin" in access.passwords else min(set(access.passwords) - {READER}, default=READER)
        self._line = _line(access.url, *access.login(login), access.ca)

    def size(self, digest: str) -> int | None:
        """See Shelf."""
        found = self._line.do(lambda bus: _found(bus, digest))
        return None if found is None else found.about.size

    def write(self, digest: str, data: bytes) -> None:
        """See Shelf. Of two who write at once the first is kept."""
        self._line.do(lambda bus: _write(bus, digest, data))

    def read(self, digest: str) -> bytes | None:
        """See Shelf."""
        return self._line.do(lambda bus: _read(bus, digest))


class _Line:
    """A connection with a thread and a loop of its own: whoever stores a blob may be in a loop, which it stops."""

    def __init__(self, access: Access, login: str) -> None:
        self._access, self._login = access, login
        self._bus: Bus | None = None
        self._connecting = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="blobs", daemon=True).start()

    def do(self, work: Callable[[Bus], Coroutine[Any, Any, _Done]]) -> _Done:
        """Wait for what `work` gives."""
        return asyncio.run_coroutine_threadsafe(self._done(work), self._loop).result()

    async def _done(self, work: Callable[[Bus], Coroutine[Any, Any, _Done]]) -> _Done:
        async with self._connecting:
            if self._bus is None or not self._bus.is_open:
                self._bus = await reach(self._access, self._login)
            bus = self._bus
        return await work(bus)


@cache
def _line(url: str, user: str, password: str, ca: str) -> _Line:
    """One a process and login, however many ask for it."""
    return _Line(Access(url, {user: password} if user else {}, ca), user)


class _About(msgspec.Struct):
    """What is kept under an object's name."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str


class _Found(NamedTuple):
    about: _About
    sequence: int


class _Message(msgspec.Struct):
    seq: int
    data: bytes = b""  # base64 on the wire


class _Answer(msgspec.Struct):
    message: _Message | None = None
    error: dict[str, Any] = {}

    @property
    def code(self) -> int:
        return int(self.error.get("err_code", 0))

    def require(self, what: str) -> None:
        """BusError where it is a refusal."""
        if self.error:
            raise BusError(f"{what}: {self.error.get('description')}")


async def _write(bus: Bus, digest: str, data: bytes) -> None:
    before, nuid = await _found(bus, digest), secrets.token_hex(11)  # which names this attempt and decides nothing
    if before is not None and before.about.size == len(data):
        return  # another was quicker
    starts = range(0, len(data), CHUNK_BYTES)
    for start in starts:  # a chunk that is sent again, since its answer was lost, is stored once
        fields = {"Nats-Msg-Id": f"{nuid}-{start}"}
        (await _asked(bus, _chunks(nuid), data[start : start + CHUNK_BYTES], fields)).require("store a part")
    proof = base64.urlsafe_b64encode(bytes.fromhex(digest)).decode()
    about = _About(digest, BLOBS, nuid, len(data), len(starts), f"SHA-256={proof}")
    fields = {"Nats-Expected-Last-Subject-Sequence": str(before.sequence if before else 0)}
    answer = await _asked(bus, _name(digest), msgspec.json.encode(about), fields)
    if answer.code != _WRONG_LAST_SEQUENCE:  # else it is there, ours or another's
        answer.require("store what says where the parts are")


async def _read(bus: Bus, digest: str) -> bytes | None:
    found = await _found(bus, digest)
    if found is None:
        return None
    parts, after = [], 0
    for number in range(1, found.about.chunks + 1):
        message = await _message(bus, {"seq": after + 1, "next_by_subj": _chunks(found.about.nuid)})
        if message is None:
            raise BlobError(f"part {number} of {found.about.chunks} is missing")
        parts.append(message.data)
        after = message.seq
    return b"".join(parts)


async def _found(bus: Bus, digest: str) -> _Found | None:
    message = await _message(bus, {"last_by_subj": _name(digest)})
    return None if message is None else _Found(msgspec.json.decode(message.data, type=_About), message.seq)


async def _message(bus: Bus, query: dict[str, Any]) -> _Message | None:
    answer = await _asked(bus, _GET, msgspec.json.encode(query))
    if answer.code == _NO_STREAM:
        raise UsageError(
            "these servers have no object store for blobs yet: begin a run with a login file that has admin's password"
            f" and blobs '{JETSTREAM}', which makes it"
        )
    if answer.code != _NO_MESSAGE:
        answer.require("look it up")
    return answer.message


async def _asked(bus: Bus, subject: str, data: bytes, fields: dict[str, str] | None = None) -> _Answer:
    """The server's answer, asked again while a cluster has no leader; BusError when none comes for long."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = msgspec.json.decode(await bus.request(subject, data, ANSWER_S, fields), type=_Answer)
            if not passing(answer.error):
                return answer
            why = str(answer.error.get("description"))
        except BusError as cause:
            why = str(cause)
        if time.monotonic() > deadline or not bus.is_open:
            raise BusError(f"no answer for {PATIENCE_S:.0f} s ({why}): is the log up, and may this login store blobs?")
        await asyncio.sleep(RECONNECT_WAIT_S)


def _chunks(nuid: str) -> str:
    return f"$O.{BLOBS}.C.{nuid}"


def _name(digest: str) -> str:
    return f"$O.{BLOBS}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"

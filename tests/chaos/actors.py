"""Worker processes of a disturbed run: the real loop, bus and rules, invented outcomes, strikes at boundaries."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from histories import DECIDERS, DECIDES, PERFORMS, World, _Performer
from resia.events import Blob, Draft, Event, Fact
from resia.replay.state import RunState
from resia.runtime import bus as bus_module
from resia.runtime import worker as worker_module
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, Durable, reach
from resia.runtime.process import configure_logs
from resia.runtime.protocol import Appended
from resia.runtime.server import Access
from resia.runtime.worker import Clerk, Role, Worker

from .strikes import Strikes, write_pid

ACK_WAIT_S = 1.0  # what a killed worker had in hand is handed out again after this
ACK_TIMEOUT_S = 2.0  # an answer that a killed server owed is given up after this


def quicken() -> None:
    """Shorten the product's waits, so that hundreds of restarts take minutes. Before any connection is made."""
    bus_module.ACK_WAIT_S = worker_module.ACK_WAIT_S = ACK_WAIT_S
    bus_module.ACK_TIMEOUT_S = ACK_TIMEOUT_S


class Actor(NamedTuple):
    """One worker process. `forgets` acknowledgements: the first of every event is not sent."""

    role: str
    name: str
    world: World
    forgets: bool = False


class Shelf:
    """The performer's bytes by digest, in a directory that all processes share."""

    def __init__(self, blobs: DirectoryBlobs) -> None:
        self._blobs = blobs

    def __getitem__(self, digest: str) -> bytes:
        return self._blobs.get(Blob(digest, 0))

    def __setitem__(self, digest: str, data: bytes) -> None:
        assert self._blobs.put(data).digest == digest


class Acknowledged(msgspec.Struct, frozen=True):
    """An append that the server acknowledged, as a worker wrote it down: the batch's last number, its ids in order."""

    role: str
    sequence: int
    ids: tuple[str, ...]
    already: bool = False  # the server had it, or another outcome of the same request, before
    at: float = 0.0  # seconds since the epoch


class Notebook:
    """Acknowledged appends on disk before anything follows from them."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, entry: Acknowledged) -> None:
        os.write(self._file, msgspec.json.encode(entry) + b"\n")
        os.fsync(self._file)


def role_of(actor: Actor, blobs: DirectoryBlobs) -> Role:
    performer = _Performer(actor.world, {})
    performer.blobs = Shelf(blobs)
    decides = DECIDES.get(actor.role, ())
    return Role(
        actor.role, decides, DECIDERS.get(actor.role, _nothing), PERFORMS[actor.role],
        lambda state, fact, _: performer(state, fact),
        quarantines=actor.role == "feedback",
    )  # fmt: skip


def _nothing(state: RunState, fact: Fact) -> list[Event]:
    del state, fact
    return []


class _Handed(NamedTuple):
    """Work whose acknowledgement is watched."""

    work: Any
    strikes: Strikes
    withhold: bool

    @property
    def fact(self) -> Any:
        return self.work.fact

    async def ack(self) -> None:
        if isinstance(self.work.fact, Fact):
            await self.strikes.at("unacked", self.work.fact.envelope.id)
        if not self.withhold:
            await self.work.ack()

    async def in_progress(self) -> None:
        await self.work.in_progress()

    async def give_back(self) -> None:
        await self.work.give_back()


def disturb(bus: Bus, actor: Actor, strikes: Strikes, notebook: Notebook) -> None:
    """Have this connection strike at its boundaries and note what was acknowledged."""
    append, durable, request = bus.append, bus.durable, bus._client.request
    seen: set[int] = set()

    async def struck_append(run: str, drafts: Sequence[Draft], fence: int | None = None) -> Appended:
        first = drafts[0].id
        await strikes.at("before", first)
        appended = await append(run, drafts, fence)
        ids = tuple(draft.id for draft in drafts)
        notebook.note(Acknowledged(actor.role, appended.sequence, ids, appended.already, time.time()))
        await strikes.at("after", first)
        return appended

    async def struck_request(subject: str, *args: Any, **kwargs: Any) -> Any:
        if (kwargs.get("headers") or {}).get("Nats-Batch-Commit"):
            await strikes.at("amid", subject.rpartition(".")[2])
        return await request(subject, *args, **kwargs)

    class Watched(NamedTuple):
        durable: Durable

        async def take(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
            handed = await self.durable.take(timeout)
            if handed is None:
                return None
            withhold = actor.forgets and handed.fact.sequence not in seen
            seen.add(handed.fact.sequence)
            return _Handed(handed, strikes, withhold)

    @asynccontextmanager
    async def watched_durable(*args: Any, **kwargs: Any) -> AsyncIterator[Watched]:
        async with durable(*args, **kwargs) as found:
            yield Watched(found)

    bus.append, bus.durable, bus._client.request = struck_append, watched_durable, struck_request  # type: ignore


async def serve(folder: Path, access: Access, run: str, actor: Actor) -> None:
    bus = await reach(access, actor.role)

    async def leader() -> str:
        return (await bus.members(run))[0].name

    disturb(bus, actor, Strikes(folder, actor.name, leader), Notebook(folder / f"{actor.name}.acknowledged"))
    write_pid(folder, actor.name, os.getpid())
    clerk = Clerk(run, actor.role, actor.name, "chaos", time.time)
    try:
        await Worker(bus, role_of(actor, DirectoryBlobs(folder / "blobs")), clerk).serve()
    finally:
        await bus.close()


def main(folder: Path, access: Access, run: str, actor: Actor) -> int:
    """Body of a forked process; its exit code."""
    log = os.open(folder / f"{actor.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    configure_logs()
    try:
        asyncio.run(serve(folder, access, run, actor))
    except BaseException:  # noqa: BLE001 - a process ends here; its log says why and it is started again
        traceback.print_exc()
        return 1
    return 0

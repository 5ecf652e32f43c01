"""Where runs live on one machine: a folder with the embedded server's store, the blobs and the workers' logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import UnknownName, UsageError
from resia.events.subjects import check_run

from .blobs import DirectoryBlobs
from .bus import Bus, connect
from .server import Access, EmbeddedServer, running_access


class Store(NamedTuple):
    """A store folder, or an external server (`nats`) whose blobs are still in the folder."""

    folder: Path
    nats: str | None = None

    def make(self) -> None:
        """The folder, where there is none yet; UsageError when it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise UsageError(
                f"the store {self.folder} cannot be used ({cause.strerror}): name another folder with --store"
            ) from None

    def blobs(self) -> DirectoryBlobs:
        return DirectoryBlobs(self.folder / "blobs")

    @property
    def workers(self) -> Path:
        return self.folder / "workers"


class Serving(NamedTuple):
    """How to reach a log, and the server when it is this process's own to keep alive."""

    access: Access
    server: EmbeddedServer | None = None


@asynccontextmanager
async def serving(store: Store, *, port: int | None = None, share: bool = True) -> AsyncIterator[Serving]:
    """The store's log: the external server, one that already runs here (`share`), or one started now."""
    if store.nats is not None:
        yield Serving(Access(store.nats))
        return
    running = running_access(store.folder) if share else None
    if running is not None:
        yield Serving(running)
        return
    server = EmbeddedServer(store.folder, port)
    try:
        yield Serving(server.start(), server)
    finally:
        server.stop()


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Bus]:
    """The store's log for reading and administration; UsageError when there is no such store."""
    if store.nats is None and not store.folder.is_dir():
        raise UsageError(f"there is no store at {store.folder}: name the folder of a run with --store")
    async with serving(store) as log:
        bus = await connect(log.access.url, *log.access.login("admin"))
        try:
            await bus.create_registry()
            yield bus
        finally:
            await bus.close()


async def require_run(bus: Bus, run: str) -> None:
    """Raise UnknownName with the nearest runs when there is no `run`, UsageError for what can be no run's name."""
    if await bus.find_run(check_run(run)) is None:
        raise UnknownName("run", run, [entry.run for entry in await bus.runs()])

"""Where runs live on one machine: a folder with the embedded server's store, the blobs and the workers' logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import UnknownName, UsageError
from resia.events.ids import sha256
from resia.events.subjects import check_run

from .blobs import DirectoryBlobs
from .bus import Bus, connect
from .protocol import IMPORTING, REMOVED, RunEntry
from .server import READER, Access, EmbeddedServer
from .snapshots import Snapshots
from .tenancy import Serving, shared, sole
from .witness import Witness

SERVERS = "servers"  # file in the folder: external servers that it was used with, an address a line


class Store(NamedTuple):
    """A store folder, or an external server (`nats`) whose blobs are still in the folder."""

    folder: Path
    nats: str | None = None

    def make(self) -> None:
        """The folder, where there is none yet; UsageError when it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remember()
        except OSError as cause:
            raise UsageError(
                f"the store {self.folder} cannot be used ({cause.strerror}): name another folder with --store"
            ) from None

    def blobs(self) -> DirectoryBlobs:
        """The folder's blobs. Of an external server the folder remembers the address: its logs name them too."""
        blobs = DirectoryBlobs(self.folder / "blobs")
        self._remember()
        return blobs

    def _remember(self) -> None:
        if self.nats is not None and address(self.nats) not in self.servers():
            with (self.folder / SERVERS).open("a") as sink:
                sink.write(address(self.nats) + "\n")

    def servers(self) -> tuple[str, ...]:
        """Addresses of external servers whose logs name blobs of this folder."""
        path = self.folder / SERVERS
        return tuple(dict.fromkeys(path.read_text().split())) if path.exists() else ()

    def witness(self, run: str) -> Witness:
        return Witness(self.folder, run, self.nats)

    def snapshots(self) -> Snapshots:
        """States kept so that a long log need not be folded again; those of an external server's runs apart."""
        return Snapshots(self.folder / "snapshots" / (sha256(self.nats.encode())[:16] if self.nats else "own"))

    @property
    def workers(self) -> Path:
        return self.folder / "workers"

    @property
    def seconds(self) -> Path:
        """Seconds counted for runs with such a budget, a file a run."""
        return self.folder / "seconds"


def address(nats: str) -> str:
    """A server's address without who asks."""
    scheme, _, rest = nats.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


@asynccontextmanager
async def serving(
    store: Store, *, port: int | None = None, share: bool = True, gives_up: bool = True
) -> AsyncIterator[Serving]:
    """The store's log: the external server, one that runs here or is started now to be shared, or one's own."""
    if store.nats is not None:
        yield Serving(Access(store.nats))
        return
    async with shared(store.folder, gives_up) if share else sole(store.folder, port) as found:
        yield found


@asynccontextmanager
async def opened(store: Store, *, administrate: bool = False) -> AsyncIterator[Bus]:
    """The store's log. UsageError when there is no such store.

    For reading, unless this process starts the server itself or is to `administrate`: another's server is then asked
    with a credential that can write nothing.
    """
    if store.nats is None and not store.folder.is_dir():
        raise UsageError(f"there is no store at {store.folder}: name the folder of a run with --store")
    async with serving(store, gives_up=not administrate) as log:
        own = administrate or log.server is not None
        bus = await connect(log.access.url, *log.access.login("admin" if own else READER))
        try:
            if own:
                await bus.create_registry()
            yield bus
        finally:
            await bus.close()


@asynccontextmanager
async def apart(folder: Path, *, durable: bool = True) -> AsyncIterator[Bus]:
    """The log in `folder` as admin, on a server that nobody else can reach: its logins are new. See EmbeddedServer."""
    server = EmbeddedServer(folder, durable=durable, known=False)
    access = server.start()
    try:
        bus = await connect(access.url, *access.login("admin"))
        try:
            await bus.create_registry()
            yield bus
        finally:
            await bus.close()
    finally:
        server.stop()


async def require_run(bus: Bus, run: str) -> None:
    """Raise UnknownName with the nearest runs when there is no `run`, UsageError for what can be no run's name.

    UsageError too for a run of which only the archive is left, or whose import was never finished.
    """
    entry = await bus.find_run(check_run(run))
    if entry is None:
        raise UnknownName("run", run, [entry.run for entry in await bus.runs()])
    check_not_removed(entry)
    if entry.status == IMPORTING:
        raise UsageError(f"run '{run}' is not whole: its import or restore was interrupted, so ask for it again")


async def require_whole(store: Store, bus: Bus, run: str) -> None:
    """`require_run`, and Tampered when the log is shorter than it was seen to be, or another."""
    await require_run(bus, run)
    await store.witness(run).check(bus, run)


def check_not_removed(entry: RunEntry) -> None:
    """Raise UsageError for a run of which only the archive is left."""
    if entry.status != REMOVED:
        return
    kept = entry.archive
    where = f"is archived at {kept.path}: resia restore {kept.path}" if kept else "is gone"
    raise UsageError(f"run '{entry.run}' was removed and {where}")

"""Where runs live on one machine: a folder with the embedded server's store, the blobs and the workers' logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import UnknownName, UsageError
from resia.events.ids import sha256
from resia.events.subjects import check_run

from .blobs import DirectoryBlobs
from .bus import Bus, connect, reach
from .logins import access_to, address
from .object_shelf import create_bucket
from .protocol import IMPORTING, REMOVED, RunEntry
from .server import READER, Access, EmbeddedServer
from .shared_blobs import blobs_at
from .snapshots import Snapshots
from .tenancy import Serving, shared, sole
from .witness import Witness

SERVERS = "servers"  # file in the folder: external servers that it was used with, an address a line


class Store(NamedTuple):
    """A store folder, or an external server whose blobs are still in the folder, or kept there as in a cache.

    `nats` is the server's address or a login file.
    """

    folder: Path
    nats: str | None = None

    def access(self) -> Access | None:
        """How to reach the external server, None where there is none; UsageError when `nats` does not say."""
        return None if self.nats is None else access_to(self.nats)

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
        blobs = blobs_at(self.folder / "blobs", self.access())
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
        return Witness(self.folder, run, self._server())

    def snapshots(self) -> Snapshots:
        """States kept so that a long log need not be folded again; those of an external server's runs apart."""
        server = self._server()
        return Snapshots(self.folder / "snapshots" / (sha256(server.encode())[:16] if server else "own"))

    def _server(self) -> str | None:
        """What is kept about an external server's runs is kept under this name, whoever asks and by what password."""
        return None if self.nats is None else address(self.nats)

    @property
    def workers(self) -> Path:
        return self.folder / "workers"

    @property
    def seconds(self) -> Path:
        """Seconds counted for runs with such a budget, a file a run."""
        return self.folder / "seconds"


@asynccontextmanager
async def serving(
    store: Store, *, port: int | None = None, share: bool = True, gives_up: bool = True
) -> AsyncIterator[Serving]:
    """The store's log: the external server, one that runs here or is started now to be shared, or one's own."""
    external = store.access()
    if external is not None:
        yield Serving(external)
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
        bus = await reach(log.access, "admin" if own else READER)
        try:
            if own:
                await bus.create_registry()
                await create_bucket(bus, log.access)
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


async def remember_ends(store: Store, bus: Bus, runs: Iterable[str]) -> None:
    """Let the witness of each of these runs know how far its log reaches: nobody watched it come about here."""
    for run in runs:
        async for fact in bus.read(run, after=await bus.last_sequence(run) - 1):
            store.witness(run).settle(fact)


def check_not_removed(entry: RunEntry) -> None:
    """Raise UsageError for a run of which only the archive is left."""
    if entry.status != REMOVED:
        return
    kept = entry.archive
    where = f"is archived at {kept.path}: resia restore {kept.path}" if kept else "is gone"
    raise UsageError(f"run '{entry.run}' was removed and {where}")

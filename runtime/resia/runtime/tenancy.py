"""Who runs the server of a store: one for itself, or readers, any of whom runs it for all until a run needs it.

A reader that finds no server starts one that yields. Each reader watches: where the server's owner has left, whoever
is first starts it again, on the same port and with the same credentials, and the others' connections find it. Whoever
needs the store for itself holds the file `wanted`; the owner then stops, and the newcomer's server is at that address.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from resia.events.errors import ResiaError

from .permissions import Access
from .server import LOCK, READY_S, EmbeddedServer, StoreInUse, locked, running_access, yields

WANTED = "wanted"
_LOOK_S = 0.2
_log = structlog.get_logger()
_SETTLE_S = 1.0  # a server that was just started may not say yet that it yields


class Serving(NamedTuple):
    """How to reach a log, and the server when it is this process's own to keep alive."""

    access: Access
    server: EmbeddedServer | None = None


@asynccontextmanager
async def sole(folder: Path, port: int | None) -> AsyncIterator[Serving]:
    """A server of one's own over `folder`. StoreInUse when another has it that does not yield."""
    server = EmbeddedServer(folder, port)
    try:
        yield Serving(await _claimed(folder, server), server)
    finally:
        server.stop()


async def _claimed(folder: Path, server: EmbeddedServer) -> Access:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with suppress(StoreInUse):
        return server.start()
    with (folder / WANTED).open("w") as wanted:
        while True:
            waited = loop.time() - started
            try:
                fcntl.flock(wanted, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return server.start()
            except (StoreInUse, BlockingIOError):
                if waited > (READY_S if yields(folder) else _SETTLE_S):
                    raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def shared(folder: Path, gives_up: bool = True) -> AsyncIterator[Serving]:
    """The server over `folder`, whoever's it is, for as long as this lasts; `gives_up` as a reader does."""
    tenant = _Tenant(folder, gives_up)
    found = await tenant.enter()
    watching = asyncio.create_task(tenant.watch())
    try:
        yield found
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        tenant.leave()


class _Tenant:
    def __init__(self, folder: Path, gives_up: bool) -> None:
        self._folder, self._gives_up = folder, gives_up
        self._server: EmbeddedServer | None = None

    async def enter(self) -> Serving:
        """Attach, or start; StoreInUse when neither can be for long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_S
        while True:
            running = running_access(self._folder)
            if running is not None:
                return Serving(running)
            started = None if locked(self._folder / WANTED) else self._start()
            if started is not None:
                return Serving(started, self._server)
            if loop.time() > deadline:
                raise StoreInUse(f"the store {self._folder} is in use by another resia: wait for it")
            await asyncio.sleep(0.05)

    async def watch(self) -> None:
        """Keep the server alive, give it up where it is wanted, start it where nobody else does."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                self._look()
            except ResiaError as cause:  # the connection says so too once it gives up; until then it may get better
                _log.warning("no server for the readers", store=str(self._folder), error=str(cause))

    def _look(self) -> None:
        wanted = locked(self._folder / WANTED)
        if self._server is not None and wanted and self._gives_up:
            self.leave()
        elif self._server is not None:
            self._server.revive()
        elif not wanted and not locked(self._folder / LOCK):
            self._start()

    def leave(self) -> None:
        """Stop the server where it is this reader's."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _start(self) -> Access | None:
        """None when another was quicker."""
        server = EmbeddedServer(self._folder, yields=self._gives_up)
        try:
            access = server.start()
        except StoreInUse:
            return None
        self._server = server
        return access

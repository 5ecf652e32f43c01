"""Running a worker of a user's own: a login that can write what it declares and no more, and the worker loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from .blobs import DirectoryBlobs
from .bus import Bus, connect
from .grants import admit
from .logs import configure_logs
from .namespaces import register
from .permissions import Access
from .plugin import role_of
from .plugin_find import Found
from .skew import warn_of_clock
from .store import Store, require_run
from .watching import watching
from .worker import Clerk, Worker, serve_runs


async def serve_found(found: Found, store: Store, run: str | None, metrics: str | None = None) -> int:
    """Serve until interrupted, or until `run` has ended. WorkerError ends it when the function breaks its contract."""
    declared = found.declared
    url, user, password = await _login(found, store)
    worker = f"{declared.login}-{socket.gethostname()}-{os.getpid()}"
    with watching(declared.role, worker, metrics) as watched:
        await _serve(found, store, run, watched.bus(await connect(url, user, password)), worker)
    return 0


async def _serve(found: Found, store: Store, run: str | None, bus: Bus, worker: str) -> None:
    declared = found.declared
    try:
        if run is not None:
            await require_run(bus, run)
        await register(bus, found.source, [kind for kind in declared.writes if "_" in kind])
        configure_logs()
        await warn_of_clock(bus, time.time)
        role = role_of(declared, DirectoryBlobs(store.folder / "blobs"))

        def clerk(name: str) -> Clerk:
            return Clerk(name, declared.role, worker, found.source, time.time)

        if run is None:
            await serve_runs(bus, role, clerk)
        else:
            await Worker(bus, role, clerk(run)).serve()
    finally:
        await bus.close()


async def _login(found: Found, store: Store) -> tuple[str, str, str]:
    """Address, user and password: those in --nats, or the worker's own on the embedded server of the store."""
    declared = found.declared
    if store.nats is not None:
        return store.nats, *Access(store.nats).login(declared.role)
    access, grant = await asyncio.to_thread(admit, store.folder, declared.role, declared.name, declared.writes)
    return access.url, grant.login, grant.password

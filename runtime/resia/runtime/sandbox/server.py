"""Starts the fork server and gives it orders; one order at a time, from any thread.

Collaborators: `child.py`, the program at the other end. Knows nothing of sources, arguments and answers: those go
over a socket of each run's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import msgspec

from resia.events.errors import BoundaryError
from resia.runtime.sandbox import wire
from resia.runtime.sandbox.wire import Setup

_ANSWER_S = 30.0
_END_S = 5.0
_GREETING_BYTES = 4096
# A fresh interpreter without site-packages, whose package is the one folder with the inside's files.
_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
_PROGRAM = """
import sys, types
for name in ("resia", "resia.runtime", "resia.runtime.sandbox"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = []
package.__path__.append(sys.argv[1])
from resia.runtime.sandbox.child import main
main(int(sys.argv[2]), sys.argv[3])
"""
# Sets iterate in the same order every time, so that a replayed run sees what the first one saw.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class Died(BoundaryError):
    """The fork server is not there."""


class Ended(NamedTuple):
    """How a guest ended: `signal` that killed it (0: none), `code` it exited with, `cpu_s` it used."""

    signal: int
    code: int
    cpu_s: float


class Server:
    """A running fork server. Raises BoundaryError when it does not start, with the lock that did not turn."""

    def __init__(self, setup: Setup) -> None:
        self._lock = threading.Lock()
        self._folder = tempfile.mkdtemp(prefix="resia-sandbox-")
        self._control, far = socket.socketpair()
        self._control.settimeout(_ANSWER_S)
        try:
            with far:
                self._process = self._start(far.fileno(), setup)
        except OSError as error:
            self._control.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise Died(f"the sandbox's interpreter cannot be started: {error}") from error
        if reason := self._greeting():
            self.close()
            raise BoundaryError(f"the sandbox cannot be locked here: {reason}")

    def _start(self, fd: int, setup: Setup) -> subprocess.Popen[bytes]:
        here = os.path.dirname(os.path.abspath(__file__))
        return subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", _PROGRAM, here, str(fd), json.dumps(setup._asdict())],
            env=_ENVIRONMENT,
            cwd=self._folder,
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the terminal is not meant for it
        )

    def _greeting(self) -> str | None:
        try:
            words = wire.unframe(self._control.recv, _GREETING_BYTES)
        except (OSError, EOFError) as error:
            self.close()
            raise Died("the sandbox's interpreter did not start") from error
        return msgspec.json.decode(words, type=dict[str, str | None])["error"]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def spawn(self) -> tuple[int, socket.socket]:
        """A guest that nobody has talked to: its process id, and the socket that leads to it. Raises Died."""
        try:
            with self._lock:
                self._control.sendall(wire.ORDER.pack(wire.SPAWN, 0))
                answer, descriptors, _, _ = socket.recv_fds(self._control, wire.SPAWNED.size, 1)
            if not descriptors:
                raise EOFError
        except (OSError, EOFError) as error:
            raise Died("the sandbox's fork server has died") from error
        # A received descriptor is inheritable; a program this process starts is not to hold a guest's socket.
        os.set_inheritable(descriptors[0], False)
        (pid,) = wire.SPAWNED.unpack(answer)
        return pid, socket.socket(fileno=descriptors[0])

    def reap(self, pid: int) -> Ended:
        """End guest `pid` if it has not ended, and say how it did. Raises Died."""
        try:
            with self._lock:
                self._control.sendall(wire.ORDER.pack(wire.REAP, pid))
                status, cpu_s = wire.REAPED.unpack(wire.exactly(self._control.recv, wire.REAPED.size))
        except (OSError, EOFError) as error:
            raise Died("the sandbox's fork server died during a run") from error
        code = os.waitstatus_to_exitcode(status)
        return Ended(max(0, -code), max(0, code), cpu_s)

    def close(self) -> None:
        """End the server and all of its guests; a second time does nothing."""
        with contextlib.suppress(OSError):
            # Wakes a thread that waits for an answer; closing alone would not.
            self._control.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

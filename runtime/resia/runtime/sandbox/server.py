"""Starts the fork server, takes guests from it and gives it orders; one order at a time, from any thread.

Collaborators: `child.py`, the program at the other end; `bubblewrap.py`, which may enclose it. Knows nothing of
sources, arguments and answers: those go over a socket of each run's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
import tempfile
import threading
from typing import NamedTuple

import msgspec

from resia.events.errors import BoundaryError
from resia.runtime.sandbox import bubblewrap, wire
from resia.runtime.sandbox.launch import Child
from resia.runtime.sandbox.wire import Setup

_ANSWER_S = 30.0
_GREETING_BYTES = 4096
# A fresh interpreter without site-packages, whose package is the one folder with the inside's files.
_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
# What modules register to be done after a fork (new seeds, new locks) touches hundreds of pages in every guest, and a
# guest seeds itself and has no threads.
_PRELUDE = """
import os, sys, types
os.register_at_fork = lambda **handlers: None
for name in ("resia", "resia.runtime", "resia.runtime.sandbox"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = []
package.__path__.append(sys.argv[1])
"""
_PROGRAM = """
from resia.runtime.sandbox.child import main
main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
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
    """A running fork server, `enclosed` in namespaces by bubblewrap or not.

    Raises BoundaryError when it does not start, with the lock that did not turn or the namespace that does not hold.
    """

    def __init__(self, setup: Setup, enclosed: bool = False) -> None:
        self._lock = threading.Lock()
        command = program(enclosed)
        self._folder = tempfile.mkdtemp(prefix="resia-sandbox-")
        self._control, control = socket.socketpair()
        self._guests, guests = socket.socketpair()
        for mine in (self._control, self._guests):
            mine.settimeout(_ANSWER_S)
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(self._guests, select.POLLIN)
        fds = (control.fileno(), guests.fileno())
        try:
            with control, guests:
                words = [*command, *map(str, fds), json.dumps(setup._asdict())]
                self._process = Child(words, self._folder, _ENVIRONMENT, fds)
        except OSError as error:
            self._discard()
            raise Died(f"the sandbox's interpreter cannot be started: {error}") from error
        if reason := self._greeting():
            self.close()
            raise BoundaryError(f"the sandbox cannot be locked here: {reason}")

    def _greeting(self) -> str | None:
        try:
            words = wire.unframe(self._control.recv, _GREETING_BYTES)
        except (OSError, EOFError) as error:
            self._discard()
            said = self._process.complaint()
            self._process.end()
            raise Died(f"the sandbox's interpreter did not start{said and ': ' + said}") from error
        return msgspec.json.decode(words, type=dict[str, str | None])["error"]

    @property
    def pid(self) -> int:
        """The id of the process that was started: the fork server, or the bubblewrap that ends with it."""
        return self._process.pid

    def take(self) -> tuple[int, socket.socket]:
        """A guest that nobody has talked to: its process id, and the socket that leads to it. Raises Died.

        Where one waits this asks nobody; else one is ordered and waited for.
        """
        try:
            with self._lock:
                if not self._waiting(0):
                    self._control.sendall(wire.ORDER.pack(wire.MORE, 0))
                    if not self._waiting(_ANSWER_S):
                        raise TimeoutError
                answer, descriptors, _, _ = socket.recv_fds(self._guests, wire.GUEST.size, 1)
            if not descriptors:
                raise EOFError
        except (OSError, EOFError) as error:
            raise Died("the sandbox's fork server has died") from error
        # A received descriptor is inheritable; a program this process starts is not to hold a guest's socket.
        os.set_inheritable(descriptors[0], False)
        (pid,) = wire.GUEST.unpack(answer)
        return pid, socket.socket(fileno=descriptors[0])

    def _waiting(self, timeout_s: float) -> bool:
        """Whether a guest is there within `timeout_s`. EOFError when the server is not: its guests end with it."""
        ready = {fd for fd, _ in self._poll.poll(1000 * timeout_s)}
        if self._control.fileno() in ready:
            raise EOFError
        return bool(ready)

    def end(self, pid: int) -> None:
        """End guest `pid`, whose outcome is known, and wait for nothing. A server that has died has ended it."""
        with contextlib.suppress(OSError), self._lock:
            self._control.sendall(wire.ORDER.pack(wire.END, pid))

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
            self._discard()
        self._process.end()

    def _discard(self) -> None:
        self._control.close()
        self._guests.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def program(enclosed: bool) -> list[str]:
    """The program up to its arguments. Raises BoundaryError where it is to be enclosed and cannot."""
    here = os.path.dirname(os.path.abspath(__file__))
    if not enclosed:
        return [sys.executable, *_FLAGS, "-c", _PRELUDE + _PROGRAM, here]
    # The interpreter itself and not a virtual environment's link to it: the environment is not there inside.
    interpreter = (os.path.realpath(getattr(sys, "_base_executable", sys.executable)), *_FLAGS)
    outer = bubblewrap.command(interpreter, _PRELUDE, here, _ENVIRONMENT)
    return [*outer, *interpreter, "-c", _PRELUDE + _PROGRAM, bubblewrap.INSIDE]

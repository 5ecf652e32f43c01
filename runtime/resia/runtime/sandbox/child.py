"""The fork server: a fresh interpreter that holds nothing, and forks one guest for every run.

It is started with two inherited sockets and nothing else, loads what generated code may use, locks itself down, and
keeps a number of guests forked, locked and waiting. It pushes each over the guests' socket as soon as it is forked,
so that who starts a run takes one without asking. It never sees a source, an argument or an answer, so a guest
inherits nothing of any run before it. When the socket of orders ends, so does the server.

Single-threaded, hence safe to fork. Collaborators: `confine`, `guest`, `wire`. Standard library alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket

from resia.runtime.sandbox import guest, wire
from resia.runtime.sandbox.confine import Locks, confine_server
from resia.runtime.sandbox.wire import Bait, Setup

# Once locked down, no extension module can be loaded, and what is loaded here costs a run nothing.
# fmt: off
PRELOAD = (
    "__future__", "_strptime", "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath",
    "collections.abc", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "fractions", "functools", "hashlib", "heapq", "html", "io", "itertools", "json", "math", "numbers", "operator",
    "pickle", "pprint", "queue", "random", "re", "statistics", "string", "struct", "textwrap", "time", "traceback",
    "types", "typing", "unicodedata", "zlib",
)
# fmt: on
# A run in progress is not to share its core with the making of the next guest, so that waits for this long a silence.
_QUIET_MS = 2
_CONNECT_S = 1.0


def load() -> None:
    """Import all that generated code may use without loading it itself."""
    for name in PRELOAD:
        importlib.import_module(name)


def main(control_fd: int, guests_fd: int, setup_json: str) -> None:
    """Serve the socket `control_fd` until it ends. The first frame is {"error": null} or says what does not hold."""
    control, guests = socket.socket(fileno=control_fd), socket.socket(fileno=guests_fd)
    setup = _setup(setup_json)
    load()
    os.environ.clear()
    reached = reach(setup.bait) if setup.bait else []
    try:
        locks = confine_server(setup)
    except OSError as error:
        reached.append(str(error))
    if reached:
        control.sendall(wire.frame(json.dumps({"error": ", ".join(reached)}).encode()))
        return
    # Nobody reads what a guest prints; until here standard error was for what kept this server from starting.
    os.dup2(1, 2)
    # Objects that no collection visits stay on pages that no fork copies.
    gc.collect()
    gc.freeze()
    control.sendall(wire.frame(json.dumps({"error": None}).encode()))
    Pool(control, guests, setup, locks).serve()


def _setup(setup_json: str) -> Setup:
    fields = json.loads(setup_json)
    return Setup(**fields | {"bait": fields["bait"] and Bait(*fields["bait"])})


def reach(bait: Bait) -> list[str]:
    """What of the machine this process, not locked yet, can get hold of; nothing in namespaces of its own."""
    found = []
    with contextlib.suppress(OSError), open(bait.secret):
        found.append("a file of the machine can be opened")
    with contextlib.suppress(OSError), socket.create_connection((bait.host, bait.port), timeout=_CONNECT_S):
        found.append("a port of the machine can be reached")
    # The first process of a namespace has no parent that it could see.
    if os.getppid() != 0:
        found.append("processes of the machine can be seen")
    return found


class Pool:
    """The guests of one server: made ahead, pushed, and reaped. `control` brings orders, guests leave by `guests`."""

    def __init__(self, control: socket.socket, guests: socket.socket, setup: Setup, locks: Locks | None) -> None:
        self._control, self._guests = control, guests
        self._setup, self._locks = setup, locks
        self._live: set[int] = set()
        self._killed: list[int] = []

    def serve(self) -> None:
        """Obey until the orders end; then end every guest."""
        orders = select.poll()
        orders.register(self._control, select.POLLIN)
        quiet = True
        while True:
            idle = len(self._live) >= self._setup.warm and not self._killed
            if orders.poll(None if idle else 0 if quiet else _QUIET_MS):
                if not (order := self._control.recv(wire.ORDER.size, socket.MSG_WAITALL)):
                    break
                self._obey(*wire.ORDER.unpack(order))
                quiet = False
            else:
                self._tend()
                quiet = True
        for pid in (*self._live, *self._killed):
            _reap(pid)

    def _obey(self, verb: bytes, pid: int) -> None:
        if verb == wire.MORE:
            self._push()
            return
        self._live.discard(pid)
        if verb == wire.REAP:
            self._control.sendall(wire.REAPED.pack(*_reap(pid)))
        else:
            # Its memory is given back by the kernel, and nobody waits for that.
            _kill(pid)
            self._killed.append(pid)

    def _tend(self) -> None:
        """One piece of work that nobody waits for; orders are looked at after each."""
        if len(self._live) < self._setup.warm:
            self._push()
        else:
            _reap(self._killed.pop())

    def _push(self) -> None:
        """Fork a guest and send it off. Its near end stays here no longer, so no later guest inherits it."""
        near, far = socket.socketpair()
        with near:
            pid = self._fork(near, far)
            self._live.add(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody is left to run anything; the orders end next
                socket.send_fds(self._guests, [wire.GUEST.pack(pid)], [near.fileno()])

    def _fork(self, near: socket.socket, far: socket.socket) -> int:
        server = os.getpid()
        pid = os.fork()
        if pid:
            far.close()
            # Both sides set it, so that it holds whichever is first.
            os.setpgid(pid, pid)
            return pid
        code = 1
        try:
            for mine in (self._control, self._guests, near):
                mine.close()
            guest.live(far.fileno(), self._setup, self._locks, server)
            code = 0
        except MemoryError:
            code = wire.EXIT_MEMORY
        finally:
            # Whatever happened, a guest never becomes a second server.
            os._exit(code)


def _kill(pid: int) -> None:
    """End guest `pid` with all of its group; one that has ended already keeps its own status."""
    with contextlib.suppress(PermissionError):  # what macOS says of a group that has ended
        os.killpg(pid, signal.SIGKILL)


def _reap(pid: int) -> tuple[int, float]:
    """End guest `pid`; its wait status and its CPU seconds."""
    _kill(pid)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime

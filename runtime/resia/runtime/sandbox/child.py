"""The fork server: a fresh interpreter that holds nothing, and forks one guest for every run.

It is started with an inherited socket and nothing else, loads what generated code may use, locks itself down, and
then obeys two orders: hand over a guest with the socket that leads to it, and end and reap a guest. One guest is
always forked and locked ahead, so that a run need not wait for it. The server never sees a source, an argument or an
answer, so a guest inherits nothing of any run before it. When the socket ends, so does the server.

Single-threaded, hence safe to fork. Collaborators: `confine`, `guest`, `wire`. Standard library alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
from typing import NamedTuple

from resia.runtime.sandbox import guest, wire
from resia.runtime.sandbox.confine import Locks, confine_server
from resia.runtime.sandbox.wire import Setup

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


def main(control_fd: int, setup_json: str) -> None:
    """Serve the socket `control_fd` until it ends. The first frame is {"error": null} or says what did not lock."""
    control = socket.socket(fileno=control_fd)
    setup = Setup(**json.loads(setup_json))
    for name in PRELOAD:
        importlib.import_module(name)
    os.environ.clear()
    try:
        locks = confine_server(setup)
    except OSError as error:
        control.sendall(wire.frame(json.dumps({"error": str(error)}).encode()))
        return
    # Objects that no collection visits stay on pages that no fork copies.
    gc.collect()
    gc.freeze()
    control.sendall(wire.frame(json.dumps({"error": None}).encode()))
    _serve(control, setup, locks)


def _serve(control: socket.socket, setup: Setup, locks: Locks | None) -> None:
    spare = _fork(control, setup, locks)
    guests = {spare.pid}
    while order := control.recv(wire.ORDER.size, socket.MSG_WAITALL):
        verb, pid = wire.ORDER.unpack(order)
        if verb == wire.SPAWN:
            with spare.near:
                socket.send_fds(control, [wire.SPAWNED.pack(spare.pid)], [spare.near.fileno()])
            spare = _fork(control, setup, locks)
            guests.add(spare.pid)
        else:
            guests.discard(pid)
            control.sendall(wire.REAPED.pack(*_reap(pid)))
    for pid in guests:
        _reap(pid)


class Guest(NamedTuple):
    """A forked guest and the near end of its socket."""

    pid: int
    near: socket.socket


def _fork(control: socket.socket, setup: Setup, locks: Locks | None) -> Guest:
    near, far = socket.socketpair()
    server = os.getpid()
    pid = os.fork()
    if pid:
        far.close()
        # Both sides set it, so that it holds whichever is first.
        os.setpgid(pid, pid)
        return Guest(pid, near)
    code = 1
    try:
        control.close()
        near.close()
        guest.live(far.fileno(), setup, locks, server)
        code = 0
    except MemoryError:
        code = wire.EXIT_MEMORY
    finally:
        # Whatever happened, a guest never becomes a second server.
        os._exit(code)


def _reap(pid: int) -> tuple[int, float]:
    """End guest `pid` with all of its group; its wait status and its CPU seconds. One that had ended keeps its own."""
    with contextlib.suppress(PermissionError):  # what macOS says of a group that has ended
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime

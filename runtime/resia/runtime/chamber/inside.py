"""The chamber's fork server: an interpreter with its libraries loaded that forks one locked process for every guest.

It is started with one inherited socket and obeys two orders: fork a guest for the socket and the arena that come with
the order, and end and reap one. It never sees a source. What is loaded, and how a guest lives, is in the module that
the setup names: `preload(setup)` before the first fork, `live(near, arena, setup)` in the guest, which locks itself
there. The server has no threads, so it may fork. Standard library, `locks` and that module.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from typing import Any

from resia.runtime.chamber import locks
from resia.runtime.chamber.orders import SPAWN, SPAWNED
from resia.runtime.sandbox import kernel, wire


def main(control_fd: int, setup_json: str) -> None:
    """Serve the socket `control_fd` until it ends. The first frame is {"error": null} or says what did not lock."""
    control, setup = socket.socket(fileno=control_fd), json.loads(setup_json)
    kind = importlib.import_module(setup["guest"])  # ours, which cannot be read once the locks have turned
    try:
        if setup["confined"] and setup["device"] == "cpu":
            locks.limit_files()
            tempfile.tempdir = "/"  # torch asks for one, and there is none
        kind.preload(setup)
    except (OSError, ImportError) as error:
        control.sendall(wire.frame(json.dumps({"error": str(error)}).encode()))
        return
    gc.collect()
    gc.freeze()
    control.sendall(wire.frame(json.dumps({"error": None}).encode()))
    _serve(control, setup, kind)


def _serve(control: socket.socket, setup: dict[str, Any], kind: Any) -> None:
    guests = set[int]()
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, wire.ORDER.size, 2)
        if not order:
            break
        verb, pid = wire.ORDER.unpack(order)
        if verb == SPAWN:
            pid = _fork(control, setup, kind, *descriptors)
            guests.add(pid)
            control.sendall(SPAWNED.pack(pid))
        else:
            guests.discard(pid)
            control.sendall(wire.REAPED.pack(*_reap(pid)))
    for pid in guests:
        _reap(pid)


def _fork(control: socket.socket, setup: dict[str, Any], kind: Any, near: int, arena: int) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        os.close(near)
        os.close(arena)
        with contextlib.suppress(OSError):  # both sides set it, so that it holds whichever is first
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        control.close()
        os.setpgid(0, 0)
        if sys.platform == "linux":
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                raise OSError("the fork server ended first")
        kind.live(near, arena, setup)
        code = 0
    except MemoryError:
        code = wire.EXIT_MEMORY
    finally:
        # Whatever happened, a guest never becomes a second server.
        os._exit(code)


def _reap(pid: int) -> tuple[int, float]:
    """End guest `pid` with all of its group; its wait status and its CPU seconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime

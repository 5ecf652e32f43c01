"""The chamber's fork server: an interpreter with torch loaded that forks one locked process for every kernel.

It is started with one inherited socket and obeys two orders: fork a guest for the socket and the arena that come with
the order, and end and reap one. It never sees a source. torch starts its threads in the guest, before the last lock
forbids any more; the server has none, so it may fork. Standard library, torch, `locks` and `resia.kernels.guest`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
from typing import Any

from resia.kernels import guest
from resia.runtime.chamber import locks
from resia.runtime.chamber.orders import SPAWN, SPAWNED
from resia.runtime.sandbox import kernel, wire

WARM = 256  # rows and columns of the products that make torch start its threads


def main(control_fd: int, setup_json: str) -> None:
    """Serve the socket `control_fd` until it ends. The first frame is {"error": null} or says what did not lock."""
    control, setup = socket.socket(fileno=control_fd), json.loads(setup_json)
    try:
        if setup["confined"] and setup["device"] == "cpu":
            locks.limit_files()
            tempfile.tempdir = "/"  # torch asks for one, and there is none
        import torch

        torch.set_num_threads(1)
    except (OSError, ImportError) as error:
        control.sendall(wire.frame(json.dumps({"error": str(error)}).encode()))
        return
    gc.collect()
    gc.freeze()
    control.sendall(wire.frame(json.dumps({"error": None}).encode()))
    _serve(control, setup)


def _serve(control: socket.socket, setup: dict[str, Any]) -> None:
    guests = set[int]()
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, wire.ORDER.size, 2)
        if not order:
            break
        verb, pid = wire.ORDER.unpack(order)
        if verb == SPAWN:
            pid = _fork(control, setup, *descriptors)
            guests.add(pid)
            control.sendall(SPAWNED.pack(pid))
        else:
            guests.discard(pid)
            control.sendall(wire.REAPED.pack(*_reap(pid)))
    for pid in guests:
        _reap(pid)


def _fork(control: socket.socket, setup: dict[str, Any], near: int, arena: int) -> int:
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
        _live(setup, near, arena, server)
        code = 0
    except MemoryError:
        code = guest.EXIT_MEMORY
    finally:
        # Whatever happened, a guest never becomes a second server.
        os._exit(code)


def _live(setup: dict[str, Any], near: int, arena: int, server: int) -> None:
    """Lock this forked process, say so, and obey."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            raise OSError("the fork server ended first")
    _warm(setup["device"], setup["threads"])
    tasks = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY) if os.path.isdir("/proc/self/task") else -1
    found = guest.tools(setup["device"], tasks)
    if setup["device"] == "cpu":
        locks.limit_use(locks.Budget(setup["cpu_s"], setup["memory_bytes"]))
        if setup["confined"]:
            locks.limit_calls()
    guest.send(near, {"ready": True})
    guest.serve(near, arena, found)


def _warm(device: str, threads: int) -> None:
    """Start every thread that torch will use, and load what it loads late."""
    import torch

    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.ones(4, WARM, WARM, dtype=dtype, device=device)
        torch.nn.functional.layer_norm(torch.matmul(values, values).sigmoid(), (WARM,))
        torch.einsum("bik,bjk->bij", values, values)


def _reap(pid: int) -> tuple[int, float]:
    """End guest `pid` with all of its group; its wait status and its CPU seconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime

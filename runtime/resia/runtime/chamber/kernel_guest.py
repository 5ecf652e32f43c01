"""How a kernel's process begins: torch loaded, its threads started, the locks turned; then `resia.kernels.guest`.

torch starts its threads in the guest, before the last lock forbids any more. Standard library, torch, `locks` and
`resia.kernels.guest`.
"""

from __future__ import annotations

import os
from typing import Any

from resia.kernels import guest
from resia.runtime.chamber import locks

WARM = 256  # rows and columns of the products that make torch start its threads


def preload(setup: dict[str, Any]) -> None:
    """Before the first fork."""
    del setup
    import torch

    torch.set_num_threads(1)


def live(near: int, arena: int, setup: dict[str, Any]) -> None:
    """Lock this forked process, say so, and obey."""
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

"""A kernel-bench as a process of its own, whose clock follows a script: `python scripted_bench.py JSON`.

Its first kernel it never gives back, if it is told a file to write when it has one in hand: it is there to be killed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
from kernels_given import SCRIPTED, ScriptedChamber

from given import clerk
from resia.events import KernelSubmitted
from resia.events.errors import SandboxError
from resia.kernels.bench import BenchPorts, judge_submission
from resia.runtime import bus as bus_module
from resia.runtime import worker as worker_module
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import connect
from resia.runtime.worker import Role, Worker

BROKEN = "does not parse"
bus_module.ACK_WAIT_S = worker_module.ACK_WAIT_S = 1.0  # what is lost with a process is soon handed out again


class Orders(msgspec.Struct, frozen=True):
    url: str
    user: str
    password: str
    run: str
    blobs: str
    hold: str = ""


class Clocked(ScriptedChamber):
    """Every kernel takes 100 us but one that does not parse."""

    def __init__(self, hold: str) -> None:
        super().__init__(100.0, 100.0)
        self._hold = hold

    @contextmanager
    def load(self, source: str, config: object) -> Iterator[ScriptedChamber]:
        if self._hold:
            Path(self._hold).touch()
            threading.Event().wait()
        if BROKEN in source:
            raise SandboxError("compile", "line 1: it does not parse")
        with super().load(source, config) as loaded:
            yield loaded


async def serve(orders: Orders) -> None:
    chamber = Clocked(orders.hold)
    ports = BenchPorts(
        lambda: chamber, lambda _: nullcontext(), DirectoryBlobs(Path(orders.blobs)), lambda _: None, SCRIPTED
    )
    role = Role(
        "kernel-bench",
        (),
        lambda state, fact: [],
        (KernelSubmitted,),
        lambda s, fact, _: judge_submission(fact, 0, ports),
    )
    bus = await connect(orders.url, orders.user, orders.password)
    await Worker(bus, role, clerk(orders.run, "kernel-bench", "b1")).serve()
    await bus.close()


if __name__ == "__main__":
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Orders)))

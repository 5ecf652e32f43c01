"""The chamber of kernel files: a guest a kernel, loaded once and called in batches.

Collaborators: `forks` (servers and guests), `arena` (shared memory), `tiers`. Every time that a guest names is held
against the clock here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import resia.kernels
from resia.domains.trimul.operator import Floats, Inputs
from resia.domains.trimul.roofline import Device, cpu
from resia.events.errors import SandboxError
from resia.kernels.ports import FAILURES, Config, Limits, Ran

from .arena import Arena, Laid
from .forks import FOLDERS, Forks, Guest, Kind, Talk
from .tiers import ATTEMPTS, OPEN_ON_GPU, candidates

_FOLDERS = {**FOLDERS, "resia.kernels": str(Path(resia.kernels.__file__ or "").resolve().parent)}
# What tells CUDA and Triton which GPU is meant, and where the driver and the compilers are.
_OF_GPU = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "TRITON_LIBCUDA_PATH",
)
_PROGRAMS = "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRIED = """
def custom_kernel(x, mask, weights, config):
    return x
"""


def gpu_environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a guest on a GPU is told beyond one on a processor. It must see the same GPU as this process, whose lease
    is held; compilers ask for programs, and torch's for the user's name, which no file there tells."""
    return {"PATH": _PROGRAMS, "USER": "kernel", "LOGNAME": "kernel"} | {k: own[k] for k in _OF_GPU if k in own}


class ProcessChamber:
    """Implements `resia.kernels.ports.Chamber`. Raises UsageError where nothing holds, unless `unsafe_local`.

    Close it, or use it as a context manager. Kernels run one at a time, so that one does not slow another.
    """

    def __init__(self, limits: Limits | None = None, device: Device | None = None, unsafe_local: bool = False) -> None:
        self._limits = limits or Limits()
        self.device = device or cpu(self._limits.threads)
        self._lock = threading.Lock()
        asked = self._limits
        setup = {
            "device": self.device.kind,
            "threads": asked.threads,
            "cpu_s": asked.cpu_s,
            "memory_bytes": asked.memory_bytes,
        }
        environment = {} if self.device.kind == "cpu" else gpu_environment(os.environ)
        kind = Kind("kernel file", "resia.runtime.chamber.kernel_guest", _FOLDERS, setup, environment)
        self._forks = Forks(kind, candidates(self.device.kind, tuple(_FOLDERS.values())), self._attempt, unsafe_local)

    def _attempt(self, forks: Forks, known: str) -> None:
        left_open = "" if self.device.kind == "cpu" else OPEN_ON_GPU
        with self._guest(forks) as candidate:
            candidate.define(known + left_open + ATTEMPTS + _TRIED, {})

    @property
    def tier(self) -> str:
        """The name of what holds here."""
        return self._forks.tier

    @contextlib.contextmanager
    def load(self, source: str, config: Config) -> Iterator[ProcessCandidate]:
        """See `resia.kernels.ports.Chamber.load`."""
        with self._lock, self._guest(self._forks) as candidate:
            candidate.define(source, config)
            yield candidate

    @contextlib.contextmanager
    def _guest(self, forks: Forks) -> Iterator[ProcessCandidate]:
        arena = Arena()
        try:
            with forks.guest(arena.fd) as talk:
                candidate = ProcessCandidate(talk, arena, self._limits, self.device.kind == "cpu")
                try:
                    yield candidate
                finally:
                    candidate.end()
        finally:
            arena.close()

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._forks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProcessCandidate(Guest):
    """A kernel in its guest; see `resia.kernels.ports.Candidate`."""

    FAILURES: ClassVar[Sequence[str]] = FAILURES

    def __init__(self, talk: Talk, arena: Arena, limits: Limits, on_cpu: bool) -> None:
        super().__init__(talk, limits.cpu_s)
        self._arena, self._limits, self._on_cpu = arena, limits, on_cpu
        self._begun()

    def define(self, source: str, config: Config) -> None:
        """Define the kernel file."""
        self._patience(self._limits.load_s)
        self._say({"do": "load", "source": source, "config": dict(config)})
        self._heard("done")

    def run(self, calls: Sequence[Inputs], watch: bool = False) -> Ran:
        """See `resia.kernels.ports.Candidate.run`."""
        laid = self._arena.lay_out(calls)
        if not self._on_cpu:  # a kernel on a GPU has them there before the signal
            self._arena.write(laid, calls)
        self._patience(self._limits.load_s)
        self._say({"do": "run", "calls": laid.calls, "bytes": laid.bytes, "watch": watch})
        self._heard("ready")
        if self._on_cpu:  # only now, or a file that rewrites the guest's lines would do the work before the clock runs
            self._arena.write(laid, calls)
        self._patience(self._limits.call_s * len(calls))
        started = time.perf_counter_ns()
        self._send(b"G")
        self._heard("done")
        wall_us = (time.perf_counter_ns() - started) / 1000
        # Read at once, faster than a kernel that has put its work off could make them.
        outputs = tuple(out.copy() for out in self._arena.outputs(laid)) if self._on_cpu else ()
        return self._collected(laid, wall_us, outputs)

    def _collected(self, laid: Laid, wall_us: float, outputs: tuple[Floats, ...]) -> Ran:
        self._patience(self._limits.load_s)
        said = self._heard("ns")
        if len(said.ns) != len(laid.calls):
            raise SandboxError("crashed", f"named {len(said.ns)} times for {len(laid.calls)} calls")
        inside_us = tuple(ns / 1000 for ns in said.ns)
        return Ran(outputs or self._arena.outputs(laid), self._arena.after(laid), inside_us, wall_us)

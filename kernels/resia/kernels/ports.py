"""The chamber: a process of its own in which a kernel file runs, handed in by whoever judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec

from resia.domains.trimul.operator import Floats, Inputs
from resia.domains.trimul.roofline import Device

Config = Mapping[str, int | float | str | bool]


class Ran(NamedTuple):
    """One batch of calls. `after`: the inputs as the kernel left them. `inside_us`: of each call, by the clock inside;
    `wall_us`: of the whole batch, by the clock of this process."""

    outputs: tuple[Floats, ...]
    after: tuple[Inputs, ...]
    inside_us: tuple[float, ...]
    wall_us: float


class Candidate(Protocol):
    """A loaded kernel."""

    def run(self, calls: Sequence[Inputs], watch: bool = False) -> Ran:
        """Call the kernel once for each of `calls`, one after the other, as one batch.

        Output memory is filled with NaN before. `watch`: a kernel that catches an exception of its own is a failure.
        Raises SandboxError whose `failure` is one of FAILURES, BoundaryError when the chamber itself broke.
        """
        ...


class Chamber(Protocol):
    """Starts kernels, each in a fresh process without network, secrets or anything to write to."""

    @property
    def tier(self) -> str:
        """How they are locked in."""
        ...

    @property
    def device(self) -> Device: ...

    def load(self, source: str, config: Config) -> AbstractContextManager[Candidate]:
        """A process that has defined `source`; it ends with the context. Raises as `Candidate.run` does."""
        ...


class Limits(msgspec.Struct, frozen=True):
    """What one kernel may use. `load_s` and `call_s` are wall seconds to define it (compilation included) and for each
    call; `cpu_s` of the whole process; `memory_bytes` beyond what torch itself needs; `threads` of torch."""

    load_s: float = 60.0
    call_s: float = 30.0
    cpu_s: int = 3600
    memory_bytes: int = 8 << 30
    threads: int = 2


# Why a kernel is rejected; the first ones are its own fault, `quarantined` is a time that cannot be believed.
FAILURES = (
    "compile",
    "raised",
    "swallowed",
    "type",
    "dtype",
    "shape",
    "wrong",
    "mutated",
    "thread",
    "timeout",
    "memory",
    "sandbox_violation",
    "crashed",
    "quarantined",
)

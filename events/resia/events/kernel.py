"""The kernel-bench role: KernelSubmitted -> KernelBenchmarked | KernelRejected."""

from __future__ import annotations

from typing import Literal

import msgspec

from .blob import Blob

Protocol = Literal["gpumode", "strict"]
Stage = Literal["compile", "verify", "time", "audit"]


class KernelSubmitted(msgspec.Struct, frozen=True):
    """A rollout asks for its kernel to be judged."""

    rollout: str
    source: Blob
    config: dict[str, int | float | str | bool]
    protocol: Protocol


class KernelBenchmarked(msgspec.Struct, frozen=True):
    """Correct on every case and timed: microseconds a case, their geometric mean, reward = 1500 / us."""

    submission: str
    protocol: Protocol
    device: str
    case_us: dict[str, float]
    geomean_us: float
    reward: float
    floor_us: float


class KernelRejected(msgspec.Struct, frozen=True):
    """Not correct, not runnable or not believable; `stage` and `failure` say which."""

    submission: str
    stage: Stage
    failure: str
    detail: str

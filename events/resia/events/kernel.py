"""The kernel-bench role: KernelSubmitted -> KernelBenchmarked | KernelRejected."""

from __future__ import annotations

from typing import Literal

import msgspec

from .blob import Blob

Protocol = Literal["gpumode", "strict"]
Stage = Literal["compile", "verify", "time", "audit"]


class KernelSubmitted(msgspec.Struct, frozen=True):
    """A kernel file is to be judged: `source` defines custom_kernel, `config` is given to each call.

    `rollout` names who asks; `suite` the cases, empty for those of the bench's device.
    """

    rollout: str
    source: Blob
    config: dict[str, int | float | str | bool]
    protocol: Protocol
    suite: str = ""


class KernelBenchmarked(msgspec.Struct, frozen=True):
    """Correct on every case and timed: microseconds a case, their geometric mean, reward = 1500 / us.

    `floor_us` is the roofline of `device` over the timed cases of `suite`; `tier` is how the kernel was locked in.
    """

    submission: str
    protocol: Protocol
    device: str
    case_us: dict[str, float]
    geomean_us: float
    reward: float
    floor_us: float
    suite: str = "full"
    tier: str = ""


class KernelRejected(msgspec.Struct, frozen=True):
    """Not correct, not runnable or not believable; `stage` and `failure` say which.

    `failure` is `infrastructure` where the bench broke: then nothing is said about the kernel.
    """

    submission: str
    stage: Stage
    failure: str
    detail: str

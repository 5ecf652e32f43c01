"""The kernel-bench role: KernelSubmitted -> KernelBenchmarked | KernelRejected."""

from __future__ import annotations

from typing import Literal

import msgspec

from .blob import Blob
from .ids import sha256

Protocol = Literal["gpumode", "strict"]
Stage = Literal["compile", "verify", "time", "audit"]


INFRASTRUCTURE = "infrastructure"  # a rejection's failure where the bench broke: no word on the kernel


class KernelSubmitted(msgspec.Struct, frozen=True):
    """A kernel file is to be judged: `source` defines custom_kernel, `config` is given to each call.

    `rollout` names who asked first; `suite` the cases, empty for those of the bench's device. The same kernel on the
    same cases is one submission of a run (`key`), whoever asks and however often; `attempt` counts the times before
    that were no word on it.
    """

    rollout: str
    source: Blob
    config: dict[str, int | float | str | bool]
    protocol: Protocol
    suite: str = ""
    attempt: int = 0

    @property
    def key(self) -> str:
        """SHA-256 over what the verdict is of: source, config, protocol and suite."""
        judged = (self.source.digest, dict(sorted(self.config.items())), self.protocol, self.suite)
        return sha256(msgspec.json.encode(judged))


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

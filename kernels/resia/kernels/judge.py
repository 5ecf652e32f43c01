"""From a kernel file to a verdict: define, verify, time, audit. Whatever is wrong with it is named and never raised.

An audit asks whether a time can be: below the roofline of the device found it is quarantined, and near it the kernel
is timed again in a fresh process on other inputs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from resia.domains.trimul.cases import Suite, geometric_mean, reward
from resia.domains.trimul.operator import Case
from resia.domains.trimul.roofline import Device, floor_us, ideal_us
from resia.events import KernelProtocol, KernelStage
from resia.events.errors import SandboxError
from resia.events.ids import SEED_BITS, seed_for

from .checking import maths_for, verify
from .ports import Candidate, Chamber, Config
from .timing import DISAGREEMENT, Budget, gpumode, strict

NEAR_FLOOR = 1.4


class Verdict(msgspec.Struct, frozen=True):
    """What became of a kernel. `failure` empty: it is right, and timed where that was asked (`case_us` not empty).

    `stage` is the last one that was reached. Times in microseconds of `device`; `floor_us` is what none can be under.
    """

    stage: KernelStage
    suite: str
    device: str
    tier: str
    failure: str = ""
    detail: str = ""
    protocol: str = ""
    case_us: dict[str, float] = {}
    geomean_us: float = 0.0
    reward: float = 0.0
    floor_us: float = 0.0
    verified: int = 0  # cases


class Judge:
    """Judges kernels in one chamber over one suite of cases. `say` hears how far it has come.

    A seed says what a kernel is verified on. What it is timed on depends on a secret too: a file that knows or guesses
    the seed could have the answers ready, or compute no more than the block that is looked at.
    """

    def __init__(
        self, chamber: Chamber, suite: Suite, budget: Budget | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self._chamber, self._suite, self._budget = chamber, suite, budget or Budget()
        self._say, self._maths = say or (lambda _: None), maths_for(chamber.device)
        self._stage: KernelStage = "compile"
        self._secret = secrets.randbits(SEED_BITS)

    def verify(self, source: str, config: Config, seed: int) -> Verdict:
        """Is it right on every case of the suite? Raises BoundaryError when the chamber broke."""
        return self._settled(lambda: self._verified(source, config, seed))

    def bench(self, source: str, config: Config, protocol: KernelProtocol, seed: int) -> Verdict:
        """Verify, and if it is right, time and audit it. Raises BoundaryError when the chamber broke."""
        return self._settled(lambda: self._benched(source, config, protocol, seed))

    def _settled(self, work: Callable[[], Verdict]) -> Verdict:
        self._stage = "compile"
        try:
            return work()
        except SandboxError as error:
            return self._verdict(failure=error.failure, detail=str(error))

    def _verdict(self, **fields: object) -> Verdict:
        plain = Verdict(self._stage, self._suite.name, self._chamber.device.name, self._chamber.tier)
        return msgspec.structs.replace(plain, **fields)

    def _verified(self, source: str, config: Config, seed: int) -> Verdict:
        with self._chamber.load(source, config) as candidate:
            self._check(candidate, seed)
        return self._verdict(verified=len(self._suite.tested))

    def _check(self, candidate: Candidate, seed: int) -> None:
        self._stage = "verify"
        for number, case in enumerate(self._suite.tested, 1):
            self._say(f"verifying case {number} of {len(self._suite.tested)}: {case.name}")
            verify(candidate, case, seed, self._maths)

    def _benched(self, source: str, config: Config, protocol: KernelProtocol, seed: int) -> Verdict:
        with self._chamber.load(source, config) as candidate:
            self._check(candidate, seed)
            case_us = self._times(candidate, protocol, seed_for(seed, "time", self._secret))
        device, mean = self._chamber.device, geometric_mean(case_us)
        floor = floor_us(self._suite.timed, device)
        self._stage = "audit"
        require_possible(self._suite.timed, case_us, device)
        if mean < NEAR_FLOOR * floor:
            self._again(source, config, protocol, seed, mean)
        return self._verdict(
            protocol=protocol,
            case_us={name: round(us, 2) for name, us in case_us.items()},
            geomean_us=round(mean, 2),
            reward=round(reward(mean), 6),
            floor_us=round(floor, 2),
            verified=len(self._suite.tested),
        )

    def _times(self, candidate: Candidate, protocol: KernelProtocol, seed: int) -> dict[str, float]:
        self._stage, times = "time", dict[str, float]()
        for number, case in enumerate(self._suite.timed, 1):
            self._say(f"timing case {number} of {len(self._suite.timed)}: {case.name}")
            if protocol == "strict":
                timed = strict(candidate, case, self._chamber.device, seed, self._budget, self._maths)
            else:
                timed = gpumode(candidate, case, seed, self._budget, self._maths)
            times[case.name] = timed.us
        return times

    def _again(self, source: str, config: Config, protocol: KernelProtocol, seed: int, mean: float) -> None:
        """A fresh process, other inputs, the same time."""
        with self._chamber.load(source, config) as candidate:
            again = geometric_mean(self._times(candidate, protocol, seed_for(seed, "audit", self._secret)))
        self._stage = "audit"
        if abs(again - mean) > DISAGREEMENT * mean:
            raise SandboxError(
                "quarantined",
                f"{mean:.1f} us is near the roofline, and timed again in a fresh process it is {again:.1f}",
            )


def require_possible(cases: tuple[Case, ...], case_us: dict[str, float], device: Device) -> None:
    """No case may take less than the device's roofline. Raises SandboxError `quarantined`."""
    for case in cases:
        floor = ideal_us(case, device)
        if case_us[case.name] < floor:
            raise SandboxError(
                "quarantined",
                f"case {case.name} took {case_us[case.name]:.2f} us and {device.name} cannot do it under {floor:.2f}",
            )

"""How a case is timed: the public protocol and the strict one. Every call has inputs of its own.

`gpumode`: one call that is checked and not timed, then one at a time, 3 to 100 of them, until the standard error is
under 0.1% of the mean, the kernel has run for 10 s, or 120 s have passed. It believes the clock inside.

`strict`: batches of different length whose inputs together overflow the cache. The clock outside sees each batch from
the signal to its end; the difference of two batches over the difference of their lengths is the time of a call, free of
what a batch itself costs. A pair of batches counts only if the clock inside says the same to within 10%, and of the
long batch as a whole, so that a short batch made slow does not make a call look short; a kernel that has too few such
pairs is quarantined. So a forged clock gains nothing; nor does work done before the signal or put off beyond a call's
end, on a processor, where the inputs come with the signal and outputs are read as soon as the batch is said to be done.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

import msgspec

from resia.domains.trimul.operator import Case
from resia.domains.trimul.roofline import Device
from resia.events.errors import SandboxError
from resia.events.ids import seed_for

from .checking import HOST, Maths, inputs, recheck
from .ports import Candidate, Ran

SEED_STEP = 13
DISAGREEMENT = 0.10
BATCH_US = 1000.0  # what a batch may cost beside its calls: a message each way, and being woken


class Budget(msgspec.Struct, frozen=True):
    """How long a case may be timed. `pairs` of batches must agree, of at most `tries`; a long batch takes `batch_us` or
    more and has `least_calls` to `most_calls` where memory allows; the others are the public protocol's."""

    pairs: int = 3
    tries: int = 9
    batch_us: float = 60_000.0
    least_calls: int = 16
    most_calls: int = 64
    most_bytes: int = 8 << 30
    least_repeats: int = 3
    most_repeats: int = 100
    error: float = 0.001
    kernel_s: float = 10.0
    wall_s: float = 120.0


class Timed(NamedTuple):
    """Mean microseconds of a call, and of how many calls."""

    us: float
    calls: int


class Pair(NamedTuple):
    """A short and a long batch: microseconds a call, by the clock inside and by the one outside."""

    inside_us: float
    wall_us: float
    long: Ran

    @property
    def gap(self) -> float:
        """How far apart the two are, relative to the outer; infinite where that is no time at all."""
        return abs(self.inside_us - self.wall_us) / self.wall_us if self.wall_us > 0 else math.inf

    @property
    def unseen_us(self) -> float:
        """What of the long batch the clock inside has not seen."""
        return self.long.wall_us - math.fsum(self.long.inside_us)

    @property
    def agrees(self) -> bool:
        return self.gap <= DISAGREEMENT and self.unseen_us <= DISAGREEMENT * self.long.wall_us + BATCH_US


def strict(
    candidate: Candidate, case: Case, device: Device, seed: int, budget: Budget | None = None, maths: Maths = HOST
) -> Timed:
    """Time one case; the mean over the long batches of the pairs that agree. Raises SandboxError."""
    budget = budget or Budget()
    first = _batch(candidate, case, 1, seed_for(seed, "warm"), maths)
    long = _calls(case, device, first.inside_us[0], budget)
    pairs: list[Pair] = []
    for number in range(budget.tries):
        pairs.append(_pair(candidate, case, long, seed_for(seed, "pair", number), maths))
        good = [pair for pair in pairs if pair.agrees]
        if len(good) >= budget.pairs:
            times = [us for pair in good for us in pair.long.inside_us]
            return Timed(statistics.fmean(times), len(times))
    raise _disbelieved(case, long, pairs, len(good))


def _disbelieved(case: Case, long: int, pairs: list[Pair], good: int) -> SandboxError:
    told = ((pair.inside_us, pair.wall_us, pair.unseen_us) for pair in pairs)
    inside, wall, unseen = (statistics.median(values) for values in zip(*told, strict=True))
    return SandboxError(
        "quarantined",
        f"case {case.name}: a call takes {inside:.6g} us by the clock inside and {wall:.6g} us by the judge's, who saw"
        f" {unseen:.6g} us more of a batch of {long} (medians of {len(pairs)} pairs of batches, {good} of which agree"
        f" to {DISAGREEMENT:.0%})",
    )


def gpumode(candidate: Candidate, case: Case, seed: int, budget: Budget | None = None, maths: Maths = HOST) -> Timed:
    """Time one case as the public benchmark does; the mean of all repeats. Raises SandboxError."""
    budget, times = budget or Budget(), list[float]()
    # What is compiled for a new shape is compiled now: the public one checks a call before it times any, too.
    _batch(candidate, case, 1, seed_for(seed, "untimed"), maths)
    started = time.monotonic()
    while len(times) < budget.most_repeats:
        times.extend(_batch(candidate, case, 1, seed + SEED_STEP * len(times), maths).inside_us)
        if len(times) >= budget.least_repeats and (
            statistics.stdev(times) / math.sqrt(len(times)) < budget.error * statistics.fmean(times)
            or sum(times) > 1e6 * budget.kernel_s
            or time.monotonic() - started > budget.wall_s
        ):
            break
    return Timed(statistics.fmean(times), len(times))


def _calls(case: Case, device: Device, us: float, budget: Budget) -> int:
    """Calls of a long batch: inputs beyond the cache, and long enough for a clock, within memory."""
    wanted = max(budget.least_calls, device.cache_bytes // case.x_bytes + 1, math.ceil(budget.batch_us / max(us, 1.0)))
    return max(2, min(wanted, budget.most_calls, budget.most_bytes // (2 * case.x_bytes)))


def _pair(candidate: Candidate, case: Case, long: int, seed: int, maths: Maths) -> Pair:
    a, b = (_batch(candidate, case, calls, seed_for(seed, "calls", calls), maths) for calls in (1, long))
    inside = (math.fsum(b.inside_us) - math.fsum(a.inside_us)) / (long - 1)
    return Pair(inside, (b.wall_us - a.wall_us) / (long - 1), b)


def _batch(candidate: Candidate, case: Case, calls: int, seed: int, maths: Maths) -> Ran:
    """So many calls on new inputs, each output checked when the time has been taken."""
    made = [inputs(maths, case, seed, number) for number in range(calls)]
    ran = candidate.run(made)
    recheck(case, made, ran, seed, maths)
    return ran

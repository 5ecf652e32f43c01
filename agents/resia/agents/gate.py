"""The gate: a paired one-sided test and a non-inferiority check decide whether a candidate replaces the champion.

In: rewards by validation item of candidate and champion, and of what the champion had solved. Out: accept, reject or
undecided with a `GateReport` (docs/gate.md). Pure: every resample draws from a seed that is handed in. Written on numpy
and the standard library alone, because importing scipy.stats costs 0.6 s in every process that decides, and because
its bootstrap may draw in another order in another version, which would undo a replayed verdict.
Knows nothing of the log, of splits, or of what a candidate is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from resia.events import GateReport, GateSettings, ProbeAlarmed

Floats = npt.NDArray[np.float64]
Outcome = Literal["accept", "reject", "undecided"]

ENUMERATED = 16  # up to this many unequal pairs, all 2^n sign flips are counted
FLIPS = 99_999  # drawn beyond that; the smallest p-value is 1e-5, below alpha_k until the 55th test at 0.05
BLOCK = 8192  # flips held in memory at once
RESAMPLES = 9_999
TIE = 1e-12  # means closer than this are equal: sums of the same rewards differ in the last bit

_normal = NormalDist()


class Interval(NamedTuple):
    low: float
    high: float


class Verdict(NamedTuple):
    outcome: Outcome
    report: GateReport


def level(test: int, alpha: float) -> float:
    """alpha_k = 6 alpha / (pi^2 k^2) for test k >= 1: all levels of a run sum to `alpha`."""
    if test < 1:
        raise ValueError(f"tests are counted from 1, got {test}")
    return 6.0 * alpha / (math.pi * test) ** 2


def judge(
    candidate: Mapping[str, float],
    champion: Mapping[str, float],
    *,
    binary: bool,
    test: int,
    settings: GateSettings,
    solved: Mapping[str, tuple[float, float]],
    seed: int,
) -> Verdict:
    """Compare on the same validation items; effects are candidate minus champion.

    `binary` says that every reward is 0 or 1 (exact McNemar; otherwise sign flips of item means). `test` is k >= 1 of
    the run. `solved` maps canaries and solved items to the mean reward (before, after). `seed` >= 0.
    Raises ValueError when the two sides name different items, or a reward is not finite or not binary as stated.
    """
    alpha = level(test, settings.alpha)
    effects = _differences(candidate, champion, binary)
    changes = np.array([after - before for _, (before, after) in sorted(solved.items())])
    _require_finite(changes)
    p_value, method = _test(effects, binary, seed)
    p_worse, _ = _test(-effects, binary, seed)
    interval = bca(effects, alpha, seed)
    retention = bca(changes, settings.alpha, seed) if len(changes) else None
    outcome, reason = _decide(len(effects), p_value, p_worse, alpha, interval, retention, settings)
    report = GateReport(
        test=test,
        alpha=alpha,
        items=len(effects),
        p_value=p_value,
        effect=float(effects.mean()) if len(effects) else 0.0,
        ci_low=interval.low,
        ci_high=interval.high,
        method=method,
        retention_low=retention.low if retention else None,
        reason=reason,
    )
    return Verdict(outcome, report)


def mcnemar(gains: int, losses: int) -> float:
    """One-sided exact McNemar: P(X >= gains) for X ~ Binomial(gains + losses, 1/2); 1 without a discordant pair."""
    pairs = gains + losses
    return float(sum(math.comb(pairs, i) for i in range(gains, pairs + 1)) / 2**pairs)


def sign_flip(effects: Floats, seed: int) -> tuple[float, str]:
    """(p, method) of the one-sided permutation test of a mean > 0 by flipping signs; ties count against the candidate.

    Equal pairs are dropped: their flips change no mean. Exact up to 16 unequal pairs, else (b + 1) / (m + 1) over
    m drawn flips, which keeps the level (Phipson and Smyth 2010).
    """
    unequal = effects[effects != 0]
    n = len(unequal)
    observed = float(unequal.sum()) - TIE * max(len(effects), 1)
    if n <= ENUMERATED:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((_flipped_sums(flipped, unequal) >= observed).mean()), "sign-flip-exact"
    rng = np.random.default_rng([seed, 0])
    reached = 0
    for start in range(0, FLIPS, BLOCK):
        drawn = rng.integers(0, 2, (min(BLOCK, FLIPS - start), n), dtype=np.int8)
        reached += int((_flipped_sums(drawn, unequal) >= observed).sum())
    return (reached + 1) / (FLIPS + 1), "sign-flip-monte-carlo"


def bca(values: Floats, tail: float, seed: int) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean, `tail` (at most a half) outside on either side.

    Efron 1987: the bootstrap quantiles at Phi(z0 + (z0 + z) / (1 - a (z0 + z))), z0 from the share of resampled means
    below the mean (ties half), a = sum d^3 / (6 (sum d^2)^1.5) over d = value - mean. Values that are all equal give a
    point, no value (0, 0).
    """
    n = len(values)
    if n == 0:
        return Interval(0.0, 0.0)
    mean = float(values.mean())
    if np.ptp(values) <= TIE:
        return Interval(mean, mean)
    draws = np.random.default_rng([seed, 1]).integers(0, n, (RESAMPLES, n))
    means = values[draws].mean(axis=1)
    below = float((means < mean - TIE).mean() + (means <= mean + TIE).mean()) / 2
    z0 = _normal.inv_cdf(min(max(below, 0.5 / RESAMPLES), 1 - 0.5 / RESAMPLES))
    centred = values - mean
    acceleration = float((centred**3).sum()) / (6 * float((centred**2).sum()) ** 1.5)
    tail = min(tail, 0.5)
    levels = [_bca_level(z0, acceleration, _normal.inv_cdf(q)) for q in (tail, 1 - tail)]
    low, high = np.quantile(means, levels)
    return Interval(float(low), float(high))


def gap_probe(
    search_change: float, validation_change: float, settings: GateSettings, *, evaluation: str
) -> ProbeAlarmed | None:
    """An alarm when the search score rose and the gap search - validation widened by more than `gap_alarm`.

    Changes are candidate minus champion, of mean rewards; `evaluation` is the candidate's.
    """
    widened = search_change - validation_change
    if search_change <= 0 or widened <= settings.gap_alarm + TIE:
        return None
    detail = f"the gap between search and validation widened by {widened:.3f}, more than {settings.gap_alarm:g}"
    return ProbeAlarmed(evaluation, "search-validation-gap", search_change, validation_change, detail)


def _decide(
    items: int,
    p_value: float,
    p_worse: float,
    alpha: float,
    interval: Interval,
    retention: Interval | None,
    settings: GateSettings,
) -> tuple[Outcome, str]:
    if items < settings.min_items:
        return "undecided", f"{items} validation items, the gate needs {settings.min_items}"
    if p_worse <= alpha:
        return "reject", f"worse: p = {p_worse:.3g} <= {alpha:.3g} in the other direction"
    if interval.high <= 0:
        return "reject", f"no gain: the interval of the effect ends at {interval.high:.3g}"
    if retention is not None and retention.low <= -settings.retention_delta:
        why = f"loses what was solved: change >= {retention.low:.3g}, allowed > {-settings.retention_delta:g}"
        if retention.high < 0:
            return "reject", f"{why}, and surely a loss: <= {retention.high:.3g}"
        return "undecided", why
    if p_value <= alpha:
        kept = f"; what was solved changes by >= {retention.low:.3g}" if retention else ""
        return "accept", f"better: p = {p_value:.3g} <= {alpha:.3g}{kept}"
    return "undecided", f"not shown: p = {p_value:.3g} > {alpha:.3g}"


def _differences(candidate: Mapping[str, float], champion: Mapping[str, float], binary: bool) -> Floats:
    """Candidate minus champion, by item name."""
    if unpaired := sorted(candidate.keys() ^ champion.keys()):
        raise ValueError(f"candidate and champion must have the same items; only one side has {', '.join(unpaired)}")
    items = sorted(candidate)
    sides = np.array([[side[item] for item in items] for side in (candidate, champion)], dtype=np.float64)
    _require_finite(sides)
    if binary and not np.isin(sides, (0.0, 1.0)).all():
        raise ValueError("a binary gate takes rewards of 0 and 1 only")
    difference: Floats = sides[0] - sides[1]
    return difference


def _require_finite(rewards: Floats) -> None:
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")


def _test(effects: Floats, binary: bool, seed: int) -> tuple[float, str]:
    if binary:
        return mcnemar(int((effects > 0).sum()), int((effects < 0).sum())), "mcnemar-exact"
    return sign_flip(effects, seed)


def _flipped_sums(flipped: npt.NDArray[np.integer], effects: Floats) -> Floats:
    """Sum of effects with the signs of the marked ones turned, a row each."""
    sums: Floats = effects.sum() - 2.0 * (flipped.astype(np.float64) @ effects)
    return sums


def _bca_level(z0: float, acceleration: float, z: float) -> float:
    # |acceleration| <= 1/6, so the floor is reached only by a z0 + z of 6 and more.
    return _normal.cdf(z0 + (z0 + z) / max(1 - acceleration * (z0 + z), 1e-9))

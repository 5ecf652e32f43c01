"""The reward landscape: what the champion's search rollouts say about how to learn next (docs/selection.md).

In: scored rollouts of the search split and a few scalars of the run. Out: one `Landscape`, every number finite.
Pure: the bootstrap draws from a seed that is handed in, and rollouts are ordered by content first, so the order in
which they arrived changes nothing. Knows nothing of the log, the gate, models or domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from resia.events import FORMAT_FAILURES, Landscape, RolloutRecorded

Floats = npt.NDArray[np.float64]

EPSILON = 1e-6  # two rewards closer than this are equal
REFERENCE_GROUP = 8  # rollouts an item in the pass that costs are quoted in, and k of pass@k
MIN_SAMPLE = 30  # rollouts below which the shape of the rewards is not estimated
RESAMPLES = 1000
LOW_PERCENTILE = 0.10
RISK_PRIOR = (1.0, 9.0)  # Beta(lost, retained): one drop in ten expected before any weight candidate


def measure(
    rollouts: Sequence[RolloutRecorded],
    *,
    token_budget_left: int,
    update_tokens: int,
    ess: float,
    kl_per_token: float,
    weight_trials: tuple[int, int],
    seed: int,
) -> Landscape:
    """Features of `rollouts`, all of the search split, N items with up to G rollouts each.

    `update_tokens` is what one weight update trains on; `ess` in [0, 1] and `kl_per_token` (nats, >= 0) compare the
    policy to train with the one that sampled; `weight_trials` counts past weight candidates as (retained, lost).
    Shares of rollouts have all rollouts, shares of groups all groups in the denominator; of nothing they are 0.
    Raises ValueError for a rollout of another split and for a number that is not finite.
    """
    _check(rollouts, ess, kl_per_token)
    ordered = sorted(rollouts, key=_content)
    groups = [list(group) for _, group in groupby(ordered, key=lambda r: r.item)]
    rewards = [np.array([r.reward for r in group]) for group in groups]
    tallies = [(len(group), sum(r.success for r in group)) for group in groups]
    pooled = np.array([r.reward for r in ordered])
    size, wins = max((n for n, _ in tallies), default=0), sum(c for _, c in tallies)
    skew, tail = shape(pooled, seed)
    tokens = _pass_tokens(ordered, len(groups))
    steps = [len(r.step_rewards) for r in ordered]
    return Landscape(
        items=len(groups),
        group_size=size,
        reward_mean=_mean([float(r.mean()) for r in rewards]),
        reward_density=_mean([_density(r.step_rewards) for r in ordered]),
        horizon=float(np.median(steps)) if steps else 0.0,
        p_pos=wins / max(len(ordered), 1),
        successes=wins,
        informative=_mean([float(r.std() > EPSILON) for r in rewards]),
        forecast=_mean([1 - (c / n) ** size - (1 - c / n) ** size for n, c in tallies]),
        distinct_rewards=float(np.median([_distinct(r) for r in rewards])) if rewards else 0.0,
        clustering=intraclass(tallies),
        skew=skew,
        tail=tail,
        rollout_cost=tokens / max(update_tokens, 1),
        afford=max(token_budget_left, 0) / max(tokens, 1.0),
        regression_risk=regression_risk(*weight_trials),
        format_failures=_format_failures(ordered),
        headroom=_mean([pass_at(n, c, REFERENCE_GROUP) - c / n for n, c in tallies]),
        ess=ess,
        kl_per_token=kl_per_token,
    )


def intraclass(tallies: Sequence[tuple[int, int]]) -> float | None:
    """ICC(1) of success by one-way ANOVA over (rollouts, successes) an item, clipped to [0, 1].

    (MSB - MSW) / (MSB + (n0 - 1) MSW) with n0 = (N - sum n_i^2 / N) / (items - 1). None with fewer than two items,
    with one rollout an item, or when every rollout ended alike. Source: Shrout and Fleiss 1979, unequal n as in
    Donner 1986.
    """
    items, total = len(tallies), sum(n for n, _ in tallies)
    if items < 2 or total == items:
        return None
    grand = sum(c for _, c in tallies) / total
    between = sum(n * (c / n - grand) ** 2 for n, c in tallies) / (items - 1)
    within = sum(c * (n - c) / n for n, c in tallies) / (total - items)
    size = (total - sum(n * n for n, _ in tallies) / total) / (items - 1)
    spread = between + (size - 1) * within
    return min(max((between - within) / spread, 0.0), 1.0) if spread > 0 else None


def expected_informative(p_pos: float, clustering: float | None, group: int) -> float:
    """Share of groups of `group` rollouts expected to hold both outcomes, in [0, 1], under a beta-binomial.

    The success rates of items follow Beta(a, b) with mean `p_pos` and a + b = (1 - clustering) / clustering, so
    E[p^G] = prod_{i<G} (a + i) / (a + b + i). No clustering: every item has rate `p_pos`.
    """
    rho = clustering or 0.0
    if rho >= 1.0:
        return 0.0
    # Dividing every factor by a + b = (1 - rho) / rho keeps it finite as rho goes to 0.
    ends = [
        math.prod((p * (1 - rho) + i * rho) / (1 - rho + i * rho) for i in range(group)) for p in (p_pos, 1 - p_pos)
    ]
    return min(max(1.0 - sum(ends), 0.0), 1.0)


def pass_at(rollouts: int, successes: int, k: int) -> float:
    """Unbiased pass@k, 1 - C(n - c, k) / C(n, k) (Chen 2021, eq. 1); k is at most `rollouts`, which only lowers it."""
    k = min(k, rollouts)
    return 1.0 - math.comb(rollouts - successes, k) / math.comb(rollouts, k)


def regression_risk(retained: int, lost: int) -> float:
    """Posterior mean of P(a weight candidate loses what the champion solved), from the prior Beta(1, 9)."""
    prior_lost, prior_retained = RISK_PRIOR
    return (prior_lost + lost) / (prior_lost + prior_retained + retained + lost)


def shape(rewards: Floats, seed: int) -> tuple[float | None, float | None]:
    """(skew, tail) of sorted or unsorted `rewards`, each the 10th percentile over bootstrap resamples.

    None below 30 rewards, and each where the sample itself leaves it undefined: no spread, or none below the median.
    A resample that leaves it undefined counts as 0, no evidence of a tail.
    """
    if len(rewards) < MIN_SAMPLE:
        return None, None
    sample = np.sort(rewards)
    draws = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    resampled = sample[draws]
    found: list[float | None] = []
    for statistic in (skewness, tail_ratio):
        defined = bool(np.isfinite(statistic(sample[None])[0]))
        values = np.nan_to_num(statistic(resampled), nan=0.0)
        found.append(float(np.quantile(values, LOW_PERCENTILE)) if defined else None)
    return found[0], found[1]


def skewness(rows: Floats) -> Floats:
    """Adjusted Fisher-Pearson skewness sqrt(n (n - 1)) / (n - 2) m3 / m2^1.5 of each row; NaN without spread."""
    n = rows.shape[1]
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1)
    flat = variance <= EPSILON**2
    biased = (centred**3).mean(axis=1) / np.where(flat, 1.0, variance) ** 1.5
    return np.where(flat, np.nan, biased * math.sqrt(n * (n - 1)) / (n - 2))


def tail_ratio(rows: Floats) -> Floats:
    """(q95 - q50) / (q50 - q05) of each row, quantiles interpolated linearly; NaN without spread below the median."""
    low, middle, high = np.quantile(rows, (0.05, 0.5, 0.95), axis=1)
    flat = middle - low <= EPSILON
    return np.where(flat, np.nan, (high - middle) / np.where(flat, 1.0, middle - low))


def _check(rollouts: Sequence[RolloutRecorded], ess: float, kl_per_token: float) -> None:
    for rollout in rollouts:
        if rollout.split != "search":
            raise ValueError(f"a landscape is of search rollouts; item '{rollout.item}' is of split '{rollout.split}'")
        if not all(map(math.isfinite, (rollout.reward, *rollout.step_rewards))):
            raise ValueError(f"item '{rollout.item}' has a reward that is not finite")
    if not (math.isfinite(ess) and math.isfinite(kl_per_token)):
        raise ValueError(f"ess and kl_per_token must be finite, got {ess} and {kl_per_token}")


def _content(r: RolloutRecorded) -> tuple[object, ...]:
    """All that is read of a rollout, item first: equal keys are interchangeable."""
    return (r.item, r.reward, r.success, r.step_rewards, r.failure or "", r.prompt_tokens, r.completion_tokens)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(len(values), 1)


def _density(step_rewards: Sequence[float]) -> float:
    return sum(abs(r) > EPSILON for r in step_rewards) / max(len(step_rewards), 1)


def _distinct(rewards: Floats) -> int:
    return 1 + int((np.diff(np.sort(rewards)) > EPSILON).sum())


def _pass_tokens(rollouts: Sequence[RolloutRecorded], items: int) -> float:
    """Tokens of a pass of 8 rollouts over `items` items, at the mean rollout's cost."""
    spent = sum(r.prompt_tokens + r.completion_tokens for r in rollouts)
    return items * REFERENCE_GROUP * spent / max(len(rollouts), 1)


def _format_failures(rollouts: Sequence[RolloutRecorded]) -> float:
    # A valid answer that does not succeed has no failure class, and is a failure all the same.
    failed = [r.failure for r in rollouts if not r.success]
    return sum(f in FORMAT_FAILURES for f in failed) / max(len(failed), 1)

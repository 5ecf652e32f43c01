"""What a policy would have gained on decisions that another one drew: inverse propensity, from real propensities.

A logged decision has the action's logged probability mu and its reward r; the target gives that action pi. With
w = pi / mu the estimates are IPS, the mean of w r, which is unbiased wherever mu > 0 on all that pi may do, and SNIPS,
sum w r / sum w, which is biased by O(1/n) and varies less (Horvitz and Thompson 1952; Swaminathan and Joachims 2015).
Pure; knows nothing of runs or algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec


class Drawn(NamedTuple):
    """One logged decision: what was done, its reward, and the probability of each feasible action under the policy
    that logged and under the target."""

    action: str
    reward: float
    logged: Mapping[str, float]
    target: Mapping[str, float]

    @property
    def weight(self) -> float:
        return self.target.get(self.action, 0.0) / self.logged[self.action]

    @property
    def covered(self) -> float:
        """Probability under the target of what the logging policy might have done."""
        return math.fsum(p for name, p in self.target.items() if self.logged.get(name, 0.0) > 0)


class Estimate(msgspec.Struct, frozen=True):
    """Expected reward a decision, with standard errors; None where it is not defined.

    `ess` is (sum w)^2 / sum w^2, in decisions. `support` in [0, 1] is the mean probability under the target of what
    could be logged at all: below 1 the estimates say nothing of the rest, and IPS is too low for rewards >= 0.
    """

    decisions: int
    ips: float | None
    ips_se: float | None
    snips: float | None
    snips_se: float | None
    ess: float
    support: float | None


def estimate(drawn: Sequence[Drawn]) -> Estimate:
    """Raises ValueError for an action whose logged probability is not in (0, 1], which nothing can have drawn."""
    for one in drawn:
        if not 0.0 < one.logged.get(one.action, 0.0) <= 1.0 + 1e-9:
            raise ValueError(f"{one.action} was done with logged probability {one.logged.get(one.action, 0.0)}")
    n = len(drawn)
    if n == 0:
        return Estimate(0, None, None, None, None, 0.0, None)
    weights = [one.weight for one in drawn]
    weighted = [w * one.reward for w, one in zip(weights, drawn, strict=True)]
    total, squares = math.fsum(weights), math.fsum(w * w for w in weights)
    ips, snips = math.fsum(weighted) / n, math.fsum(weighted) / total if total > 0 else None
    return Estimate(
        n,
        ips,
        _standard_error(weighted, ips),
        snips,
        _ratio_error(drawn, weights, snips) if snips is not None and n > 1 else None,
        total**2 / squares if squares > 0 else 0.0,
        math.fsum(one.covered for one in drawn) / n,
    )


def _standard_error(values: Sequence[float], mean: float) -> float | None:
    n = len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None


def _ratio_error(drawn: Sequence[Drawn], weights: Sequence[float], ratio: float) -> float:
    """By the delta method for a ratio of means."""
    apart = math.fsum((w * (one.reward - ratio)) ** 2 for w, one in zip(weights, drawn, strict=True))
    return math.sqrt(apart) / math.fsum(weights)

"""The order in which operators are tried: what they are meant for, shrunk toward what past runs measured.

    prior(o) = sum over outcome classes of mends(o, class) * share of the search rollouts with that outcome
    score(o) = (K s prior(o) + n mean(o)) / (K + n),   K = 4

n and mean(o) are the tries of o and the mean of their effects on validation, in past runs where the same class
prevailed; s in [0, 1] is what a prior of 1 was worth in them (policy.operator_scale). This is the composite estimator
of Fay and Herriot (JASA 74, 1979, 269-277): a regression on what is known beforehand, and the measured mean, weighed by
how much was measured; K is the ratio of the variance of one try to that of the operators, set and not estimated.
Without a policy, or with one that knows no edits, score is the prior. Equal scores go by the prior, then the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from resia.events import LearnedPolicy

from .catalogue import CATALOGUE

RANKING_RULE = "learned-operators/1:rank"
PRIOR_TRIES = 4  # tries after which the prior and what was measured weigh the same
NOTHING_AMISS = "none"
_SOLVED = "solved"


def rank(names: Sequence[str], failures: Mapping[str, int], policy: LearnedPolicy | None = None) -> list[str]:
    """`names` of the catalogue, best first; others are left out. Only shares of `failures` matter."""
    worth, order = scores(names, failures, policy), list(CATALOGUE)
    return sorted(worth, key=lambda name: (-worth[name], -prior(name, failures), order.index(name)))


def scores(names: Iterable[str], failures: Mapping[str, int], policy: LearnedPolicy | None) -> dict[str, float]:
    """score(o) of each of `names` that the catalogue has."""
    known = [name for name in names if name in CATALOGUE]
    if policy is None or not policy.operators:
        return {name: prior(name, failures) for name in known}
    arms = policy.operators.get(prevailing(failures), {})
    found: dict[str, float] = {}
    for name in known:
        expected, arm = policy.operator_scale * prior(name, failures), arms.get(name)
        tries, total = (arm.tries, arm.effect) if arm else (0, 0.0)
        found[name] = (PRIOR_TRIES * expected + total) / (PRIOR_TRIES + tries)
    return found


def prior(name: str, failures: Mapping[str, int]) -> float:
    """The share of the outcomes that the operator is meant to mend, in [0, 1]."""
    total = max(sum(failures.values()), 1)
    return sum(weight * failures.get(kind, 0) / total for kind, weight in CATALOGUE[name].mends.items())


def prevailing(failures: Mapping[str, int]) -> str:
    """The outcome class that most rollouts have, those solved apart; the first by name among equals."""
    found = {kind: count for kind, count in failures.items() if kind != _SOLVED and count > 0}
    return min(found, key=lambda kind: (-found[kind], kind), default=NOTHING_AMISS)


class Ranking(NamedTuple):
    """Operators in the order in which they are to be tried. Where a policy ranked them, `scores` has each one's, `rule`
    the rule's name and `reason` why the first is the first; else all three are empty."""

    names: tuple[str, ...]
    scores: dict[str, float]
    rule: str
    reason: str


def ranking(names: Sequence[str], failures: Mapping[str, int], policy: LearnedPolicy | None) -> Ranking:
    """`rank`, with what a decision is to say of it."""
    ranked = tuple(rank(names, failures, policy))
    if policy is None or not policy.operators or not ranked:
        return Ranking(ranked, {}, "", "")
    worth, best, kind = scores(ranked, failures, policy), ranked[0], prevailing(failures)
    arm = policy.operators.get(kind, {}).get(best)
    tried = f"{arm.tries} {'try' if arm.tries == 1 else 'tries'}" if arm and arm.tries else ""
    seen = f"{tried} of mean effect {arm.effect / arm.tries:+.3g}" if arm and tried else "untried there"
    head = f"operators ranked by policy {policy.digest()[:12]} where {kind} prevails"
    reason = f"{head}: first {best}, score {worth[best]:.3g} (prior {prior(best, failures):.3g}, {seen})"
    return Ranking(ranked, worth, RANKING_RULE, reason)

"""The learning layer over the published rules: draws the algorithm of a weight update from a frozen policy.

    score(a) = w prior(a) + (1 - w) (value(a) + c sqrt(ln n / n_a)),   w = 1 / (1 + n / 8)

prior(a) is 1 for what the rules choose and 0 for the others. n counts the past updates in this context, which is the
rule that fires on the landscape, and n_a those by `a`; value(a) is the mean gated gain a unit of cost, over the best
such mean of the context, so in [0, 1]; n_a = 0 scores by its prior. The best score is drawn with probability
1 - epsilon, and epsilon is spread evenly over all that is feasible. Masks are the rules' own: what they mask is never
drawn, and where they train nothing neither does this (docs/policy.md). Pure; the draw comes from a seed.
Collaborators: `selection` masks and gives the prior; `experience` fits the policy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from resia.events import ALGORITHMS, Algorithm, Arm, Landscape, LearnedPolicy, SelectionSettings
from resia.events.ids import SEED_BITS

from .selection import Choice, Objective, choose_algorithm, group_size

POLICY_RULE = "learned-algorithm/1:draw"
PRIOR_TRIALS = 8  # updates after which the prior and what was learned weigh the same


def choose(
    landscape: Landscape,
    settings: SelectionSettings,
    policy: LearnedPolicy | None,
    *,
    built: Collection[Algorithm],
    ordinal: bool,
    objective: Objective,
    failed: Collection[Algorithm],
    rollouts_fresh: bool,
    requested: Algorithm | None,
    seed: int,
) -> Choice:
    """What the rules choose, or what `policy` draws from the rules' feasible set; `seed` in [0, 2**63).

    Without a policy, with an algorithm that the run asks for, and where the rules train nothing: the rules' choice.
    """
    ruled = choose_algorithm(
        landscape,
        settings,
        built=built,
        ordinal=ordinal,
        objective=objective,
        failed=failed,
        rollouts_fresh=rollouts_fresh,
        requested=requested,
    )
    if policy is None or ruled.algorithm is None or requested is not None:
        return ruled
    arms = policy.arms.get(context_of(landscape, settings, ordinal=ordinal, objective=objective), {})
    feasible = [name for name in ALGORITHMS if name not in ruled.masks]
    scored = scores(arms, ruled.algorithm, feasible, policy.exploration)
    chances = propensities(scored, ruled.algorithm, policy.epsilon)
    drawn = draw(chances, seed)
    why = f"drawn with probability {chances[drawn]:.3g} by policy {policy.digest()[:12]} for score {scored[drawn]:.3g}"
    return Choice(
        algorithm=drawn,
        rule=POLICY_RULE,
        masks=ruled.masks,
        scores={str(name): value for name, value in scored.items()},
        propensities={str(name): value for name, value in chances.items()},
        reason=f"{why}; {ruled.rule} chooses {ruled.algorithm} ({ruled.reason})",
        group_size=group_size(drawn, landscape),
    )


def context_of(landscape: Landscape, settings: SelectionSettings, *, ordinal: bool, objective: Objective) -> str:
    """The rule that fires on this landscape when every algorithm is built, none has failed and none is asked for."""
    choice = choose_algorithm(
        landscape,
        settings,
        built=ALGORITHMS,
        ordinal=ordinal,
        objective=objective,
        failed=(),
        rollouts_fresh=True,
        requested=None,
    )
    return choice.rule


def scores(
    arms: Mapping[Algorithm, Arm], ruled: Algorithm, feasible: Collection[Algorithm], exploration: float
) -> dict[Algorithm, float]:
    """score(a) of each of `feasible`; `arms` are the context's, `ruled` is what the rules choose."""
    tried = {name: arm for name, arm in arms.items() if arm.trials > 0}
    total = sum(arm.trials for arm in tried.values())
    weight = 1.0 / (1.0 + total / PRIOR_TRIALS)
    best = max((arm.gain / arm.trials for arm in tried.values()), default=0.0)
    found: dict[Algorithm, float] = {}
    for name in feasible:
        prior, arm = float(name == ruled), tried.get(name)
        if arm is None:
            found[name] = prior
            continue
        value = arm.gain / arm.trials / best if best > 0 else 0.0
        bonus = exploration * math.sqrt(math.log(total) / arm.trials)
        found[name] = weight * prior + (1.0 - weight) * (value + bonus)
    return found


def propensities(scored: Mapping[Algorithm, float], ruled: Algorithm, epsilon: float) -> dict[Algorithm, float]:
    """Epsilon evenly over all of `scored`, the rest on the best score; among equals `ruled`, then the paper's order."""
    order = sorted(scored, key=lambda name: (-scored[name], name != ruled, ALGORITHMS.index(name)))
    even = epsilon / len(order)
    return {name: even + (1.0 - epsilon if name == order[0] else 0.0) for name in scored}


def draw(chances: Mapping[Algorithm, float], seed: int) -> Algorithm:
    """One of `chances` with its probability; the same for the same seed in [0, 2**63)."""
    point, reached = seed / 2**SEED_BITS * math.fsum(chances.values()), 0.0
    possible = [name for name in ALGORITHMS if chances.get(name, 0.0) > 0]
    for name in possible:
        reached += chances[name]
        if point < reached:
            return name
    return possible[-1]  # the point is a rounding above the sum

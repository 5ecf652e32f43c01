"""Past runs that a learned policy draws and is fitted from, and what inverse propensity says beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from benchmarks.choosing.cases import Case
from resia.agents.experience import Experience, Update, by_policy, by_rules, fit
from resia.agents.offpolicy import Drawn, estimate
from resia.agents.policy import draw
from resia.events import ALGORITHMS, LearnedPolicy
from resia.events.ids import seed_for

GENERATION = 5  # seeds after which the policy is fitted again
EPSILON, EXPLORATION = 0.2, 0.2


def play(past: Sequence[Case], number: int) -> list[Update]:
    """History `number`: every case decided by a draw of the policy fitted on the generations before. Where the rules
    train nothing there is no update."""
    updates: list[Update] = []
    trained = [case for case in past if case.situation.ruled is not None]
    seeds = sorted({case.seed for case in past})
    for first in range(0, len(seeds), GENERATION):
        policy = fitted(updates)
        updates += [_drawn(case, policy, number) for case in trained if case.seed in seeds[first : first + GENERATION]]
    return updates


def _drawn(case: Case, policy: LearnedPolicy, number: int) -> Update:
    """An update of the recorded return. All cost the same: `tokens` 0 counts as one unit."""
    chances, run = by_policy(policy, case.situation), f"{case.world}-{case.seed}"
    named = {name: chances[name] for name in ALGORITHMS if name in chances}
    drawn = draw(named, seed_for(case.seed, case.world, "policy", number))
    return Update(run, 1, case.situation, drawn, chances, case.returns[drawn], 0, False)


def fitted(updates: Sequence[Update]) -> LearnedPolicy:
    """The policy of these updates, each of them a run."""
    runs = [Experience(update.run, "", (update,)) for update in updates]
    return fit(runs, epsilon=EPSILON, exploration=EXPLORATION)


def off_policy(histories: Sequence[Sequence[Update]], past: Sequence[Case]) -> dict[str, object]:
    """Inverse propensity on the later half of each history, for a policy fitted on the first, beside the truth."""
    cases = {f"{case.world}-{case.seed}": case for case in past}
    found: dict[str, list[dict[str, float]]] = {"rules": [], "learned": []}
    for updates in histories:
        half = len(updates) // 2
        policy, later = fitted(updates[:half]), updates[half:]
        for name, held in found.items():
            targets = [by_rules(u.situation) if name == "rules" else by_policy(policy, u.situation) for u in later]
            drawn = [Drawn(u.algorithm, u.gain, u.propensities, t) for u, t in zip(later, targets, strict=True)]
            truth = float(np.mean([cases[u.run].value(t) for u, t in zip(later, targets, strict=True)]))
            held.append({"truth": truth, **msgspec.to_builtins(estimate(drawn))})
    return {name: _averaged(held) for name, held in found.items()}


def _averaged(held: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the histories in which every estimate is defined, the spread of the errors, and how often the truth
    lies within two standard errors."""
    sound = [one for one in held if None not in one.values()]
    if len(sound) < 2:
        return {"histories": len(sound)}
    means = {key: float(np.mean([one[key] for one in sound])) for key in sound[0]}
    for kind in ("ips", "snips"):
        errors = [one[kind] - one["truth"] for one in sound]
        near = [abs(error) <= 2 * one[f"{kind}_se"] for error, one in zip(errors, sound, strict=True)]
        means |= {f"{kind}_error_sd": float(np.std(errors, ddof=1)), f"{kind}_within_2se": float(np.mean(near))}
    return {**means, "histories": len(sound)}

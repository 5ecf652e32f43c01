"""What finished runs say about the choice of an algorithm: folded states to weight updates to a frozen policy.

In: the states of runs. Out: `Update`s, one a weight update that was judged, and a `LearnedPolicy`, which also holds
what `edit_experience` finds. Pure, and the order
of runs changes nothing. A fork counts only what it decided itself, because its parent's log holds the rest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from resia.events import (
    ALGORITHMS,
    Algorithm,
    Arm,
    DecisionMade,
    Landscape,
    LearnedPolicy,
    RunRequested,
    SelectionSettings,
    Source,
)
from resia.events.errors import UsageError
from resia.replay.digest import digest
from resia.replay.state import RunState, Trial

from .edit_experience import Edit, edits_of, fit_operators
from .policy import context_of, propensities, scores
from .selection import Objective, choose_algorithm

_REQUESTED = ":0-requested"


class Situation(NamedTuple):
    """All that the rules and a policy read when they chose; `masked` are the algorithms that the log masks."""

    landscape: Landscape
    settings: SelectionSettings
    ordinal: bool
    objective: Objective
    masked: frozenset[str]

    @property
    def context(self) -> str:
        """The rule that fires here without masks of the run's own."""
        return context_of(self.landscape, self.settings, ordinal=self.ordinal, objective=self.objective)

    @property
    def feasible(self) -> tuple[Algorithm, ...]:
        return tuple(name for name in ALGORITHMS if name not in self.masked)

    @property
    def ruled(self) -> Algorithm | None:
        """What the published rules choose under the recorded masks."""
        return choose_algorithm(
            self.landscape,
            self.settings,
            built=self.feasible,
            ordinal=self.ordinal,
            objective=self.objective,
            failed=(),
            rollouts_fresh=True,  # a stale algorithm is among the recorded masks
            requested=None,
        ).algorithm


class Update(NamedTuple):
    """One weight update that was judged. `gain` is the effect on validation where the gate accepted, else 0; `tokens`
    what was trained on and freshly sampled for it; `propensities` what the decision recorded; `asked` that the run
    asked for this algorithm, so nothing was chosen."""

    run: str
    iteration: int
    situation: Situation
    algorithm: Algorithm
    propensities: Mapping[str, float]
    gain: float
    tokens: int
    asked: bool


class Experience(NamedTuple):
    """A run's updates and edits in order, under its name and the digest of its state."""

    run: str
    digest: str
    updates: tuple[Update, ...]
    edits: tuple[Edit, ...] = ()


def experience(run: str, state: RunState) -> Experience:
    """The judged weight updates and edits that `run` itself decided. UsageError for a run that has not ended."""
    request = state.request
    if request is None or state.ending is None:
        raise UsageError(f"run '{run}' has not ended: a policy is fitted from finished runs, so leave it out")
    trials = {trial.iteration: trial for trial in state.trials if trial.lever == "train_weights"}
    updates = [
        _update(run, request, state, at.decision, trials[at.decision.iteration])
        for at in state.decisions
        if at.sequence > 0 and at.decision.action == "train_weights" and at.decision.iteration in trials
    ]
    return Experience(run, digest(state), tuple(update for update in updates if update), edits_of(state))


def _update(run: str, request: RunRequested, state: RunState, decision: DecisionMade, trial: Trial) -> Update | None:
    if decision.algorithm is None or decision.features is None:
        return None
    masked = frozenset(name for name in decision.masks if name in ALGORITHMS)
    asked = request.settings.algorithm is not None or decision.rule.endswith(_REQUESTED)
    return Update(
        run,
        decision.iteration,
        Situation(decision.features, request.settings.selection, request.ordinal, request.objective, masked),
        decision.algorithm,
        decision.propensities,
        max(trial.gate.effect, 0.0) if trial.gate and trial.outcome == "accepted" else 0.0,
        _tokens(state, decision.iteration),
        asked,
    )


def _tokens(state: RunState, iteration: int) -> int:
    found = [t for t in state.trainings.values() if t.request.iteration == iteration]
    sampled = sum(r.prompt_tokens + r.completion_tokens for t in found for r in t.rollouts.values())
    return sampled + sum(r.tokens for t in found for r in t.rounds)


def fit(runs: Sequence[Experience], *, epsilon: float, exploration: float) -> LearnedPolicy:
    """A policy from `runs` in any order; of a run given twice one counts. The mean update costs 1.

    Raises UsageError when a run's name stands for two logs.
    """
    known = _distinct(runs)
    updates = [update for run in known for update in run.updates]
    unit = max(round(sum(update.tokens for update in updates) / max(len(updates), 1)), 1)
    gains: dict[str, dict[Algorithm, list[float]]] = defaultdict(lambda: defaultdict(list))
    for update in updates:
        gains[update.situation.context][update.algorithm].append(unit_gain(update, unit))
    arms = {
        context: {name: Arm(len(held), math.fsum(held)) for name, held in sorted(by_name.items())}
        for context, by_name in sorted(gains.items())
    }
    sources = tuple(Source(run.run, run.digest, len(run.updates), len(run.edits)) for run in known)
    operators = fit_operators([edit for run in known for edit in run.edits])
    return LearnedPolicy(
        arms, epsilon, exploration, unit, sources, operators=operators.arms, operator_scale=operators.scale
    )


def unit_gain(update: Update, unit_tokens: int) -> float:
    """Gated gain a unit of cost; an update that cost nothing on record counts as one unit."""
    return update.gain / (update.tokens / unit_tokens if update.tokens else 1.0)


def _distinct(runs: Sequence[Experience]) -> list[Experience]:
    by_name: dict[str, Experience] = {}
    for run in runs:
        if by_name.setdefault(run.run, run).digest != run.digest:
            raise UsageError(f"run '{run.run}' was given twice with different logs: name each run once")
    return [by_name[name] for name in sorted(by_name)]


def by_rules(situation: Situation) -> dict[str, float]:
    """Probability of each feasible algorithm under the published rules."""
    ruled = situation.ruled
    return {name: float(name == ruled) for name in situation.feasible}


def by_policy(policy: LearnedPolicy, situation: Situation) -> dict[str, float]:
    """Probability of each feasible algorithm under `policy`."""
    ruled = situation.ruled
    if ruled is None:
        return by_rules(situation)
    arms = policy.arms.get(situation.context, {})
    scored = scores(arms, ruled, situation.feasible, policy.exploration)
    return {str(name): p for name, p in propensities(scored, ruled, policy.epsilon).items()}


def without(runs: Collection[Experience], run: str, policy: LearnedPolicy) -> LearnedPolicy:
    """The policy that would have been fitted with `run` left out, at the same unit of cost."""
    fitted = fit([r for r in runs if r.run != run], epsilon=policy.epsilon, exploration=policy.exploration)
    if fitted.unit_tokens == policy.unit_tokens:
        return fitted
    ratio = policy.unit_tokens / fitted.unit_tokens
    arms = {
        context: {name: Arm(arm.trials, arm.gain * ratio) for name, arm in by_name.items()}
        for context, by_name in fitted.arms.items()
    }
    return msgspec.structs.replace(fitted, arms=arms, unit_tokens=policy.unit_tokens)

"""What finished runs say about the harness operators: folded states to measured edits to counts by operator.

Pure, and the order of runs changes nothing. A fork counts only what it decided itself, because its parent's log holds
the rest. Collaborators: `operators.ranking` reads what is fitted here; `experience` does the same for weight updates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from resia.events import OperatorArm
from resia.replay.diff import candidate_evaluations
from resia.replay.state import RunState

from .operators import CATALOGUE
from .operators.ranking import prevailing, prior


class Edit(NamedTuple):
    """One edit that was measured. `failures` are the outcome classes of its parent's search rollouts, `effect` the
    change of the mean reward on validation, in [-1, 1], whatever the gate said."""

    operator: str
    failures: dict[str, int]
    accepted: bool
    effect: float


class OperatorStatistics(NamedTuple):
    """By the outcome class that prevailed and by operator; `scale` as in LearnedPolicy.operator_scale."""

    arms: dict[str, dict[str, OperatorArm]]
    scale: float


def edits_of(state: RunState) -> tuple[Edit, ...]:
    """The catalogue's edits that this run itself decided and measured, in order."""
    own = {at.decision.iteration for at in state.decisions if at.sequence > 0}
    classes = {e.request.iteration: e.completed.failures for e in candidate_evaluations(state) if e.completed}
    found, champion = list[Edit](), 0
    for trial in state.trials:
        edited = trial.lever == "edit_harness" and trial.gate is not None and trial.iteration in own
        if edited and trial.gate and trial.gate.items and trial.name in CATALOGUE:
            accepted = trial.outcome == "accepted"
            found.append(Edit(trial.name, classes.get(champion, {}), accepted, trial.gate.effect))
        champion = trial.iteration if trial.outcome == "accepted" else champion
    return tuple(found)


def fit_operators(edits: Sequence[Edit]) -> OperatorStatistics:
    """Counts of `edits` in any order, and the effect that a prior of 1 had: least squares through the origin of the
    effects on the priors, kept in [0, 1], for mending a share of the outcomes raises no mean reward by more than it."""
    held: dict[str, dict[str, list[Edit]]] = defaultdict(lambda: defaultdict(list))
    for edit in edits:
        held[prevailing(edit.failures)][edit.operator].append(edit)
    arms = {
        kind: {name: _arm(tried) for name, tried in sorted(by_name.items())} for kind, by_name in sorted(held.items())
    }
    priors = [prior(edit.operator, edit.failures) for edit in edits]
    square = math.fsum(p * p for p in priors)
    if not square:
        return OperatorStatistics(arms, 1.0)
    slope = math.fsum(p * edit.effect for p, edit in zip(priors, edits, strict=True)) / square
    return OperatorStatistics(arms, min(max(slope, 0.0), 1.0))


def _arm(tried: Sequence[Edit]) -> OperatorArm:
    return OperatorArm(len(tried), sum(edit.accepted for edit in tried), math.fsum(edit.effect for edit in tried))

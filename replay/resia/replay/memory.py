"""The experiment memory: every edit that a run has tried, with what it did, as plain records.

A pure function of the folded state, so it is rebuilt with it at any event. `tried_edits` is what `resia status` shows;
`remembered` is the same for a proposer, its numbers rounded, since effects are measured on validation items and an
exact one says more about those than a proposer is to know.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from resia.events import Component

from .diff import candidate_evaluations
from .state import Evaluation, Origin, Outcome, RunState, Trial

REMEMBERED_DIGITS = 2


class Moved(msgspec.Struct, frozen=True):
    """How many search rollouts had an outcome class before an edit (the parent's) and after it."""

    before: int
    after: int


class TriedEdit(msgspec.Struct, frozen=True):
    """One edit. `outcome` is the gate's verdict; `failed`: no operator gave a harness; `known`: the harness had been
    measured, so it was not measured again.

    `operator` joins several with + where all of them failed together. `parent` and `harness` are digests (empty: there
    is none). Effect and interval are candidate minus champion on validation items, None without a measurement.
    `moved` has the classes whose counts differ. `why` is the gate's reason, or why there was nothing to measure.
    """

    iteration: int
    operator: str
    component: Component | None
    parent: str
    harness: str
    outcome: Outcome | Literal["known"]
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    moved: dict[str, Moved]
    rationale: str
    why: str


def tried_edits(state: RunState) -> tuple[TriedEdit, ...]:
    """Every edit tried so far, in order; what a fork inherited is the first of it."""
    made = {(o.iteration, o.measured): (h, o) for h, found in sorted(state.origins.items()) for o in found}
    measured = {e.request.iteration: e for e in candidate_evaluations(state)}
    judged = [
        _judged(state, trial, measured.get(trial.iteration), made.get((trial.iteration, True)))
        for trial in state.trials
        if trial.lever == "edit_harness"
    ]
    known = [
        TriedEdit(o.iteration, o.operator, o.component, o.parent, h, "known", None, None, None, {}, o.rationale, _KNOWN)
        for h, found in state.origins.items()
        for o in found
        if not o.measured
    ]
    return tuple(sorted([*judged, *known], key=lambda edit: (edit.iteration, edit.outcome != "known", edit.operator)))


_KNOWN = "this harness was measured before"


def remembered(state: RunState, digits: int = REMEMBERED_DIGITS) -> tuple[TriedEdit, ...]:
    """`tried_edits` with effects and intervals rounded to `digits` decimals, and the gate's numbers left out."""
    return tuple(_rounded(edit, digits) for edit in tried_edits(state))


def _rounded(edit: TriedEdit, digits: int) -> TriedEdit:
    numbers = {"effect": edit.effect, "ci_low": edit.ci_low, "ci_high": edit.ci_high}
    rounded = {name: None if value is None else round(value, digits) for name, value in numbers.items()}
    why = edit.why if edit.effect is None else ""
    return msgspec.structs.replace(edit, why=why, **rounded)


def _judged(state: RunState, trial: Trial, found: Evaluation | None, made: tuple[str, Origin] | None) -> TriedEdit:
    gate = trial.gate
    harness, origin = made or ("", None)
    return TriedEdit(
        iteration=trial.iteration,
        operator=trial.name,
        component=origin.component if origin else None,
        parent=trial.parent.harness.digest if trial.parent else "",
        harness=harness if gate else "",
        outcome=trial.outcome,
        effect=gate.effect if gate else None,
        ci_low=gate.ci_low if gate else None,
        ci_high=gate.ci_high if gate else None,
        moved=_moved(_parents(state, trial), found),
        rationale=origin.rationale if origin and gate else "",
        why=gate.reason if gate else trial.detail,
    )


def _parents(state: RunState, trial: Trial) -> Evaluation | None:
    """The evaluation that crowned the trial's parent: the last accepted one before it."""
    crowned = [t.iteration for t in state.trials if t.outcome == "accepted" and t.iteration < trial.iteration]
    return next((e for e in candidate_evaluations(state) if crowned and e.request.iteration == crowned[-1]), None)


def _moved(before: Evaluation | None, after: Evaluation | None) -> dict[str, Moved]:
    if before is None or after is None or before.completed is None or after.completed is None:
        return {}
    old, new = before.completed.failures, after.completed.failures
    return {
        kind: Moved(old.get(kind, 0), new.get(kind, 0))
        for kind in sorted(old.keys() | new.keys())
        if old.get(kind, 0) != new.get(kind, 0)
    }

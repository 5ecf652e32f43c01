"""The run in numbers: one row a candidate, and a summary. Plain values; how they are shown is the caller's."""

from __future__ import annotations

from typing import Literal

import msgspec

from resia.events import (
    AdapterTrained,
    ControlFailed,
    ControlMeasured,
    ControlScore,
    GateReport,
    RolloutRecorded,
    RunCompleted,
    RunFailed,
    Split,
    SplitScore,
)

from .diff import adapter_lineage, candidate_evaluations, harness_lineage
from .ledger import Cycle, Ledger, cycle, money
from .state import Evaluation, Lever, Outcome, RunState, Status, Trial
from .verdicts import tried


class Row(msgspec.Struct, frozen=True):
    """One candidate's evaluation. `iteration` 0 is the baseline.

    `generation` counts edits since the draft, `updates` weight updates since the base. Scores are mean rewards in
    [0, 1]; `validation_rollouts` of them are greedy. Effect, interval and p are the gate's, None without a test.
    `tokens` and `rollouts` are what making and measuring the candidate cost. Coverage is the share of the rollouts
    asked for that were scored: `failed_rollouts` of them infrastructure lost, retries included.
    """

    iteration: int
    generation: int
    updates: int
    lever: Lever
    name: str
    search: float | None
    validation: float | None
    validation_rollouts: int
    outcome: Outcome | Literal["measuring", "measured"]
    p_value: float | None
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    distinct_answers: int
    tokens: int
    rollouts: int
    failed_rollouts: int
    champion: bool
    search_coverage: float | None = None
    validation_coverage: float | None = None


class Summary(msgspec.Struct, frozen=True):
    """What a run came to. Scores are mean rewards in [0, 1], None where nothing was scored.

    `rejected` counts every trial that did not replace the champion: rejected, undecided or failed.
    `controls_error` says why there are no controls, empty where there are or where they were not asked for.
    `failed_rollouts` counts every loss to infrastructure, also of what was then asked for again and had.
    `coverage` has the share of the rollouts asked for that were scored, by the name of the score, where it is below 1.
    `parent` is the RUN@K that a fork went on from; a fork's costs and trials go on from its parent's. `money` is the
    tokens at the run's own prices, in `currency`; 0 where it has none. `cycles` add up to the costs.
    """

    status: Status
    reason: str
    champion_iteration: int | None
    baseline_validation: float | None
    champion_validation: float | None
    baseline_test: float | None
    champion_test: float | None
    accepted_edits: int
    accepted_updates: int
    rejected: int
    weight_updates: int
    controls: tuple[ControlScore, ...]
    controls_error: str
    iterations: int
    events: int
    rollouts: int
    failed_rollouts: int
    tokens: int
    parent: str | None
    money: float
    currency: str
    cycles: tuple[Cycle, ...]
    coverage: dict[str, float] = {}


def rows(state: RunState) -> list[Row]:
    """A row for every candidate that was measured or is being measured, in order."""
    judged = {t.iteration: t for t in state.trials if t.gate is not None}
    return [_row(state, found, judged.get(found.request.iteration)) for found in candidate_evaluations(state)]


def summary(state: RunState) -> Summary:
    """The run as it stands after its last event."""
    ending, controls = state.ending, state.controls
    completed = ending if isinstance(ending, RunCompleted) else None
    champion, baseline = _crowning(state, "champion"), _crowning(state, "baseline")
    accepted = [trial.lever for trial in state.trials if trial.outcome == "accepted"]
    return Summary(
        status=state.status,
        reason=_reason(ending),
        champion_iteration=champion.request.iteration if champion else None,
        baseline_validation=_mean(baseline, "validation"),
        champion_validation=_mean(champion, "validation"),
        baseline_test=completed.baseline_test if completed else None,
        champion_test=completed.champion_test if completed else None,
        accepted_edits=accepted.count("edit_harness"),
        accepted_updates=accepted.count("train_weights"),
        rejected=len(state.trials) - len(accepted),
        weight_updates=sum(isinstance(t.outcome, AdapterTrained) for t in state.trainings.values()),
        controls=controls.scores if isinstance(controls, ControlMeasured) else (),
        controls_error=controls.error if isinstance(controls, ControlFailed) else "",
        iterations=state.iteration,
        events=state.sequence,
        rollouts=state.ledger.rollouts,
        failed_rollouts=state.ledger.failed_rollouts,
        tokens=state.ledger.tokens,
        parent=_parent(state),
        coverage=_coverage(state, baseline, champion),
        money=money(state.ledger, state.request.settings) if state.request else 0.0,
        currency=state.request.settings.price.currency if state.request else "",
        cycles=cycles(state),
    )


def cycles(state: RunState) -> tuple[Cycle, ...]:
    """What each cycle cost, from generation 0 to the last decision's, whether it gave a candidate or not."""
    if state.request is None:
        return ()
    settings, actions = state.request.settings, [at.decision.action for at in state.decisions]
    return tuple(
        cycle(number, actions[number - 1] if number else "draft", state.cycles.get(number, Ledger()), settings)
        for number in range(len(actions) + 1)
    )


def _parent(state: RunState) -> str | None:
    parent = state.request.parent if state.request else None
    return f"{parent.run}@{parent.iteration}" if parent else None


def _row(state: RunState, found: Evaluation, trial: Trial | None) -> Row:
    candidate, iteration = found.request.candidate, found.request.iteration
    lever, name = (trial.lever, trial.name) if trial else tried(state, found)
    gate = _test(trial)
    search, validation = _score(found, "search"), _score(found, "validation")
    tokens, rollouts = _cost(state, found)
    return Row(
        iteration=iteration,
        generation=len(harness_lineage(state, candidate.harness)),
        updates=len(adapter_lineage(state, candidate.adapter)),
        lever=lever,
        name=name,
        search=search.mean if search else None,
        validation=validation.mean if validation else None,
        validation_rollouts=validation.rollouts if validation else 0,
        outcome=trial.outcome if trial else "measured" if found.completed else "measuring",
        p_value=gate.p_value if gate else None,
        effect=gate.effect if gate else None,
        ci_low=gate.ci_low if gate else None,
        ci_high=gate.ci_high if gate else None,
        distinct_answers=search.distinct_answers if search else 0,
        tokens=tokens,
        rollouts=rollouts,
        failed_rollouts=len(found.losses),
        champion=state.champion is not None and state.champion.evaluation == found.id,
        search_coverage=search.coverage if search else None,
        validation_coverage=validation.coverage if validation else None,
    )


def _test(trial: Trial | None) -> GateReport | None:
    """The gate's report where there was something to compare with."""
    return trial.gate if trial and trial.gate and trial.gate.test > 0 else None


def _cost(state: RunState, found: Evaluation) -> tuple[int, int]:
    """(tokens, rollouts) of an evaluation, its probes, and the training that made its candidate."""
    iteration = found.request.iteration
    trainings = [t for t in state.trainings.values() if t.request.iteration == iteration]
    probes = [e for e in state.evaluations.values() if (e.request.purpose, e.request.iteration) == ("probe", iteration)]
    sampled: list[RolloutRecorded] = [
        *(r for held in (found, *probes) for r in held.rollouts.values()),
        *(r for held in trainings for r in held.rollouts.values()),
    ]
    trained = sum(done.tokens for t in trainings for done in t.rounds)
    return trained + sum(r.prompt_tokens + r.completion_tokens for r in sampled), len(sampled)


def _score(found: Evaluation | None, split: Split) -> SplitScore | None:
    return found.completed.scores.get(split) if found and found.completed else None


def _mean(found: Evaluation | None, split: Split) -> float | None:
    score = _score(found, split)
    return score.mean if score else None


def _crowning(state: RunState, which: Literal["champion", "baseline"]) -> Evaluation | None:
    """The evaluation that crowned the champion or the baseline."""
    crowned = state.champion if which == "champion" else state.baseline
    return state.evaluations.get(crowned.evaluation) if crowned else None


def _coverage(state: RunState, baseline: Evaluation | None, champion: Evaluation | None) -> dict[str, float]:
    """Coverage below 1 of what the summary gives a score of, by the name of the score."""
    opened = {e.request.purpose: e for e in state.evaluations.values() if e.request.purpose in ("test", "baseline")}
    named = {
        "baseline_validation": _score(baseline, "validation"),
        "champion_validation": _score(champion, "validation"),
        "baseline_test": _score(opened.get("baseline", opened.get("test")), "test"),
        "champion_test": _score(opened.get("test"), "test"),
    }
    return {name: score.coverage for name, score in named.items() if score and score.coverage < 1}


def _reason(ending: RunCompleted | RunFailed | None) -> str:
    if isinstance(ending, RunFailed):
        return ending.error
    return ending.reason if ending else ""

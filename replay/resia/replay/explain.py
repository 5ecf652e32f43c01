"""Why an iteration decided what it did, in words and numbers that the log holds; nothing is computed anew.

`RUN@K` names iteration K, which is the K-th DecisionMade. Text out, a line a thought; how it is shown is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from resia.events import (
    Action,
    AdapterTrained,
    DecisionMade,
    Landscape,
    Logged,
    ProbeReport,
    RunCompleted,
    RunFailed,
    TrainingFailed,
)
from resia.events.errors import UsageError
from resia.events.subjects import check_run

from .fold import fold
from .report import summary
from .state import RunState, Training, Trial
from .wording import FEATURES, PROBES, RULES, score_text

_ACTIONS: dict[Action, str] = {
    "edit_harness": "edit the harness",
    "train_weights": "train the weights",
    "sample": "sample generation 0 again",
    "stop": "stop",
}
_LEVERS = {"draft": "the draft", "edit_harness": "edit", "train_weights": "training with"}


class RunRef(NamedTuple):
    """A run, or one iteration of it."""

    run: str
    iteration: int | None


class Explanation(msgspec.Struct, frozen=True):
    """`lines` in order: the decision, what came before it, its inputs, and what came of it.

    `sequence` is the decision's event number, 0 for one that a fork inherits.
    """

    iteration: int
    sequence: int
    action: Action
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def parse_run_ref(text: str) -> RunRef:
    """`RUN` or `RUN@K` with K from 1; raises UsageError otherwise."""
    run, at, number = text.partition("@")
    check_run(run)
    if not at:
        return RunRef(run, None)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise UsageError(f"'{text[:80]}' names no iteration: write RUN@K with K from 1, such as '{run}@1'")
    return RunRef(run, int(number))


def explain(history: RunState | Iterable[Logged], iteration: int) -> Explanation:
    """Why iteration `iteration` (from 1) decided what it did; raises UsageError when the run has no such iteration."""
    state = history if isinstance(history, RunState) else fold(history)
    found = next((d for d in state.decisions if d.decision.iteration == iteration), None)
    if found is None:
        raise UsageError(f"iteration {iteration} is not in this run: {_valid_range(state)}")
    decision = found.decision
    lines = [
        f"Iteration {iteration} decided to {_ACTIONS[decision.action]} ({_place(state, found.sequence)}).",
        *_before(state, iteration),
        *_inputs(decision),
        *_carried_out(state, decision),
        *_after(state, decision),
    ]
    return Explanation(iteration, found.sequence, decision.action, tuple(lines))


def _place(state: RunState, sequence: int) -> str:
    """Where a decision stands; those that a fork inherits are in its ancestors' logs."""
    parent = state.request.parent if state.request else None
    if sequence or parent is None:
        return f"event {sequence}"
    return f"before the fork from {parent.run}@{parent.iteration}"


def _valid_range(state: RunState) -> str:
    numbers = [d.decision.iteration for d in state.decisions]
    if not numbers:
        return "it has not decided anything yet"
    return f"take one from {min(numbers)} to {max(numbers)}" if len(numbers) > 1 else f"the only one is {numbers[0]}"


def _before(state: RunState, iteration: int) -> list[str]:
    trials = [trial for trial in state.trials if trial.iteration == iteration - 1]
    return [f"Before it, {_trial(trial)}" for trial in trials] or ["Before it, no verdict is in the log."]


def _inputs(decision: DecisionMade) -> list[str]:
    words = [RULES[rule] for rule in decision.rule.split() if rule in RULES]
    lines = [f"Rule: {decision.rule}.", *(f"That is: {said}." for said in words), f"Reason: {decision.reason}."]
    if decision.algorithm is not None:
        lines.append(f"Algorithm: {decision.algorithm}.")
    counters = f"{_count(decision.failed_edits, 'failed edit')}, {_count(decision.failed_trainings, 'failed training')}"
    lines.append(f"Since the champion last changed: {counters}.")
    if decision.features is not None:
        lines += ["Champion's search rollouts, as the rules measure them:", *_features(decision.features)]
    lines += [f"Masked: {name}, because: {why}." for name, why in decision.masks.items()]
    return lines + _weighed(decision)


def _features(features: Landscape) -> list[str]:
    """A line a feature: its name, its value and what it counts."""
    held = msgspec.structs.asdict(features).items()
    return [f"  {name} {'undefined' if value is None else f'{value:.4g}'}: {FEATURES[name]}" for name, value in held]


def _weighed(decision: DecisionMade) -> list[str]:
    """What was not masked, with its score and the probability with which it was drawn."""
    if not decision.scores:
        return []
    drawn = decision.propensities
    weighed = [f"{a} score {s:.4g}, probability {drawn.get(a, 0.0):.4g}" for a, s in decision.scores.items()]
    if decision.action == "train_weights":
        return [f"Not masked: {'; '.join(weighed)}."]
    return [f"Not masked, had it trained: {'; '.join(weighed)}."]


def _carried_out(state: RunState, decision: DecisionMade) -> list[str]:
    """What the decision led to, as far as the log has it."""
    if decision.action == "edit_harness":
        return _edits(state, decision.iteration)
    if decision.action == "train_weights":
        trainings = (t for t in state.trainings.values() if t.request.iteration == decision.iteration)
        return [f"Carried out: {_training(training)}." for training in trainings]
    if decision.action == "sample":
        asked = (e for e in state.evaluations.values() if e.request.purpose == "sampling")
        found = [e for e in asked if e.request.iteration == decision.iteration]
        return [f"Carried out: {len(e.rollouts)} of {_count(len(e.request.slots), 'rollout')} are in." for e in found]
    return ["Carried out: the sealed test was opened."] if state.unsealed else []


def _edits(state: RunState, iteration: int) -> list[str]:
    made = [(h, o) for h, found in sorted(state.origins.items()) for o in found if o.iteration == iteration]
    known = [f"Left out: {o.operator} leads to harness {h[:12]}, measured before." for h, o in made if not o.measured]
    edits = [f"Carried out: {o.operator} changed the {o.component}. {o.rationale}" for _, o in made if o.measured]
    return known + edits


def _training(training: Training) -> str:
    done = sorted(training.rounds, key=lambda round_: round_.round)
    what = f"{_count(len(done), 'round')} of {training.request.algorithm}, {_count(sum(r.steps for r in done), 'step')}"
    if done:
        what += f", mean reward of a round's rollouts from {done[0].reward_mean:.4f} to {done[-1].reward_mean:.4f}"
    match training.outcome:
        case AdapterTrained(adapter=adapter):
            return f"{what}; adapter {adapter.digest[:12]}"
        case TrainingFailed(error=error):
            return f"{what}; then it failed: {error}"
        case _:
            return f"{what} so far"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _after(state: RunState, decision: DecisionMade) -> list[str]:
    if decision.action == "stop":
        return [_ending(state)]
    if decision.action == "sample":
        return []
    trials = [trial for trial in state.trials if trial.iteration == decision.iteration]
    lines = [f"What came of it: {_trial(trial)}" for trial in trials] or ["What came of it is not in the log yet."]
    lines += [_probe(report) for trial in trials if trial.gate for report in trial.gate.probes]
    measured = {e.id for e in state.evaluations.values() if e.request.iteration == decision.iteration}
    return lines + [f"Alarm of {a.probe}: {a.detail}." for a in state.alarms if a.evaluation in measured]


def _probe(report: ProbeReport) -> str:
    """One probe in a sentence."""
    return (
        f"Probe {report.probe}, {PROBES[report.probe]}: score {report.score_change:+.4f}, under the probe "
        f"{report.probe_change:+.4f} on {report.items} validation items, p {report.p_value:.3g}; "
        f"the gain {'does not hold' if report.alarmed else 'is not shown to be lost'}."
    )


def _ending(state: RunState) -> str:
    match state.ending:
        case RunCompleted() if state.unsealed is None:
            return "What came of it: the run ended with the sealed test closed."
        case RunCompleted(champion_test=champion, baseline_test=baseline):
            covered = summary(state).coverage
            scored = {name: covered.get(f"{name}_test") for name in ("champion", "baseline")}
            scores = (
                f"the champion has {_mean(champion, scored['champion'])}, the baseline"
                f" {_mean(baseline, scored['baseline'])}"
            )
            return f"What came of it: on the sealed test {scores}."
        case RunFailed(error=error):
            return f"What came of it: the run failed, {error}."
        case _:
            return "What came of it is not in the log yet."


def _mean(score: float | None, coverage: float | None) -> str:
    return "no score" if score is None else score_text(score, coverage, digits=4)


def _trial(trial: Trial) -> str:
    """One trial in a sentence."""
    what = _LEVERS[trial.lever] if trial.lever == "draft" else f"{_LEVERS[trial.lever]} {trial.name}"
    gate = trial.gate
    if gate is None:
        return f"{what} failed: {trial.detail}."
    if gate.test == 0:
        return f"{what} was {trial.outcome}: {gate.reason}."
    numbers = (
        f"effect {gate.effect:+.4f} in [{gate.ci_low:+.4f}, {gate.ci_high:+.4f}] on {gate.items} validation items, "
        f"p {gate.p_value:.3g} against alpha_{gate.test} {gate.alpha:.3g} ({gate.method})"
    )
    return f"{what} was {trial.outcome}: {numbers}; {gate.reason}."

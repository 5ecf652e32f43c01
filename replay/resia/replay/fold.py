"""evolve: fold one fact into the state of a run. Total, and without rules: whatever the log says is so.

Nine facts of ten are rollouts, and they come together. So neighbours of one such type are applied as one stretch, with
one change of each map; a fact by itself is a stretch of one, and any way to cut a log gives the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, assert_never, cast

import msgspec
from immutables import Map

from resia.events import (
    OUTCOMES,
    AdapterTrained,
    BudgetSpent,
    CandidateAccepted,
    CandidateRejected,
    CandidateUndecided,
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    Custom,
    DecisionMade,
    DraftFailed,
    DriftFailed,
    DriftMeasured,
    DriftRequested,
    EditFailed,
    EditRequested,
    EvaluationCompleted,
    EvaluationRequested,
    Fact,
    HarnessDrafted,
    HarnessEdited,
    KernelBenchmarked,
    KernelRejected,
    KernelSubmitted,
    Logged,
    MessageQuarantined,
    ProbeAlarmed,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RoundRequested,
    RoundTrained,
    RunCompleted,
    RunFailed,
    RunRequested,
    ShardSampled,
    Skipped,
    StepTrained,
    TestUnsealed,
    TrainingFailed,
    TrainingRequested,
)

from .ledger import Ledger, proposed
from .state import DecisionAt, Evaluation, Kernel, KernelOutcome, Origin, RunState, Training
from .verdicts import apply_verdict, record_failed_trial

_replace = msgspec.structs.replace


Stretch = Sequence[Logged]  # never empty; more than one only of a type in _TOGETHER
_TOGETHER = frozenset({RolloutRecorded, StepTrained, Skipped})


def fold(facts: Iterable[Logged], state: RunState | None = None) -> RunState:
    """State after `facts`, from `state` or from nothing."""
    state = state or RunState()
    for stretch in _stretches(facts):
        state = _apply(_number(state, stretch), stretch)
    return state


def evolve(state: RunState, fact: Logged) -> RunState:
    """State after one more fact. A skipped or custom message counts in numbering and roots, and changes nothing."""
    stretch = (fact,)
    return _apply(_number(state, stretch), stretch)


def _stretches(facts: Iterable[Logged]) -> Iterator[Stretch]:
    for kind, neighbours in groupby(facts, _kind):
        if kind in _TOGETHER:
            yield tuple(neighbours)
        else:
            yield from ((fact,) for fact in neighbours)


def _kind(fact: Logged) -> type:
    return type(fact.event) if type(fact) is Fact else type(fact)


def _number(state: RunState, stretch: Stretch) -> RunState:
    last = stretch[-1]
    changes: dict[str, Any] = {
        "sequence": last.sequence,
        "leaves": state.leaves.update({fact.sequence: fact.leaf for fact in stretch}),
    }
    if isinstance(last, Fact) and isinstance(last.event, OUTCOMES) and last.envelope.cause is not None:
        changes["settled"] = state.settled.set(last.envelope.cause, None)
    return _replace(state, **changes)


def _apply(state: RunState, stretch: Stretch) -> RunState:
    fact = stretch[0]
    if isinstance(fact, Skipped):
        return _replace(state, skipped=(*state.skipped, *(skipped.sequence for skipped in stretch)))
    if isinstance(fact, Custom):
        return state
    event = fact.event
    match event:
        case RolloutRecorded():
            return _add_rollouts(state, cast(Sequence[Fact], stretch))
        case StepTrained():
            return _add_steps(state, cast(Sequence[Fact], stretch))
        case RunRequested():
            return _replace(state, request=event, status="running")
        case HarnessDrafted():
            state = _charged(state, proposed(event))
            return _replace(state, harnesses=state.harnesses.set(event.harness.digest, event))
        case HarnessEdited():
            return _apply_edit(_charged(state, proposed(event)), event)
        case EvaluationRequested() | RolloutFailed() | ShardSampled() | EvaluationCompleted():
            return _apply_measurement(state, fact.envelope.id, event)
        case CandidateAccepted() | CandidateRejected() | CandidateUndecided():
            return apply_verdict(state, event)
        case DecisionMade():
            return _apply_decision(state, fact.sequence, event)
        case EditFailed():
            parent = state.champion.candidate.harness.digest if state.champion else ""
            state = _apply_known(_charged(state, proposed(event)), event.iteration, parent, event.known)
            return record_failed_trial(state, event.iteration, "edit_harness", "+".join(event.operators), event.error)
        case TrainingRequested() | RoundRequested() | RoundTrained() | AdapterTrained():
            return _apply_training(state, fact.envelope.id, event)
        case TrainingFailed():
            state = _set_training(state, event.training, outcome=event)
            return record_failed_trial(state, event.iteration, "train_weights", event.algorithm, event.error)
        case ProbeAlarmed():
            return _replace(state, alarms=(*state.alarms, event))
        case TestUnsealed():
            return _replace(state, unsealed=event)
        case ControlRequested():
            return _replace(state, controls_asked=True)
        case ControlMeasured() | ControlFailed():
            return _replace(state, controls=event)
        case RunCompleted():
            return _replace(_rooted(state, event.root_to), ending=event, status="completed")
        case RunFailed():
            return _replace(state, ending=event, status="failed")
        case DraftFailed():
            return _charged(state, proposed(event))
        case BudgetSpent():
            return _replace(state, overdrawn=state.overdrawn.set(event.kind, event))
        case DriftMeasured() | DriftFailed():
            return _replace(state, drifts=state.drifts.set(event.evaluation, event))
        case EditRequested() | RolloutsRequested() | DriftRequested():
            return state
        case KernelSubmitted() | KernelBenchmarked() | KernelRejected():
            return _apply_kernel(state, fact.envelope.id, event)
        case MessageQuarantined():
            return state
        case _:
            assert_never(event)


def _apply_kernel(state: RunState, event_id: str, event: KernelSubmitted | KernelOutcome) -> RunState:
    """A submission, or the first outcome of one that the log holds."""
    if isinstance(event, KernelSubmitted):
        kernels = _keep_first(state.kernels, event.key, Kernel(event))
        return _replace(state, kernels=kernels, submissions=_keep_first(state.submissions, event_id, event))
    asked = state.submissions.get(event.submission)
    if asked is None:
        return state
    kernel = state.kernels[asked.key]
    kernel = _replace(kernel, outcomes=_keep_first(kernel.outcomes, asked.attempt, event))
    return _replace(state, kernels=state.kernels.set(asked.key, kernel))


def _apply_edit(state: RunState, event: HarnessEdited) -> RunState:
    digest = event.harness.digest
    state = _replace(state, harnesses=_keep_first(state.harnesses, digest, event))
    state = _apply_known(state, event.iteration, event.parent.digest, event.known)
    origin = Origin(event.iteration, event.parent.digest, event.operator, event.component, event.rationale)
    return _add_origin(state, digest, origin)


def _apply_known(state: RunState, iteration: int, parent: str, known: Mapping[str, str]) -> RunState:
    """Edits that were recognised: the harness stays one, and has one more way to it."""
    for operator, digest in known.items():
        state = _add_origin(state, digest, Origin(iteration, parent, operator, measured=False))
    return state


def _add_origin(state: RunState, digest: str, origin: Origin) -> RunState:
    return _replace(state, origins=state.origins.set(digest, (*state.origins.get(digest, ()), origin)))


def _keep_first(map_: Map[Any, Any], key: object, value: object) -> Map[Any, Any]:
    """The first event that made a harness names its parent; a later equal one is the same harness."""
    return map_ if key in map_ else map_.set(key, value)


def _charged(state: RunState, spent: Ledger) -> RunState:
    """`spent` in all, and in the cycle of the last decision."""
    if spent == Ledger():
        return state
    number = state.iteration
    cycles = state.cycles.set(number, state.cycles.get(number, Ledger()).plus(spent))
    return _replace(state, ledger=state.ledger.plus(spent), cycles=cycles)


def _rooted(state: RunState, root_to: int) -> RunState:
    """Drop the leaves that a recorded root covers."""
    kept = {number: leaf for number, leaf in state.leaves.items() if number > root_to}
    return _replace(state, leaves=Map(kept), root_to=root_to)


def _apply_decision(state: RunState, sequence: int, event: DecisionMade) -> RunState:
    decisions = (*state.decisions, DecisionAt(sequence, event))
    return _replace(_rooted(state, event.root_to), decisions=decisions)


Measurement = EvaluationRequested | RolloutFailed | ShardSampled | EvaluationCompleted


def _apply_measurement(state: RunState, event_id: str, event: Measurement) -> RunState:
    match event:
        case EvaluationRequested():
            return _replace(
                state,
                evaluations=state.evaluations.set(event_id, Evaluation(event_id, event)),
                evaluation_order=(*state.evaluation_order, event_id),
            )
        case RolloutFailed():
            state = _charged(state, Ledger(failed_rollouts=1))
            found = state.evaluations.get(event.evaluation)
            if found is None:
                return state
            return _set_evaluation(state, event.evaluation, failed=found.failed.set(event_id, event))
        case ShardSampled():
            return _add_shard(state, event)
        case EvaluationCompleted():
            return _set_evaluation(state, event.request, completed=event)
        case _:
            assert_never(event)


def _add_rollouts(state: RunState, stretch: Sequence[Fact]) -> RunState:
    scores = state.scores.mutate()
    rollouts: dict[str, dict[str, RolloutRecorded]] = {}  # by evaluation or training, by event id
    for fact in stretch:
        event, event_id = cast(RolloutRecorded, fact.event), fact.envelope.id
        rollouts.setdefault(event.evaluation, {})[event_id] = event
        if event.answer and not event.reused and (key := (event.item, event.answer)) not in scores:
            scores[key] = event_id
    state = _charged(_replace(state, scores=scores.finish()), Ledger(rollouts=len(stretch)))
    for request, added in rollouts.items():
        if request in state.evaluations:
            state = _set_evaluation(state, request, rollouts=state.evaluations[request].rollouts.update(added))
        elif request in state.trainings:
            state = _set_training(state, request, rollouts=state.trainings[request].rollouts.update(added))
    return state


def _add_steps(state: RunState, stretch: Sequence[Fact]) -> RunState:
    steps: dict[str, list[StepTrained]] = {}  # by training: its tuple is copied once a stretch
    for fact in stretch:
        event = cast(StepTrained, fact.event)
        steps.setdefault(event.training, []).append(event)
    for training, added in steps.items():
        found = state.trainings.get(training)
        if found is not None:
            state = _set_training(state, training, steps=(*found.steps, *added))
    return state


def _add_shard(state: RunState, event: ShardSampled) -> RunState:
    state = _charged(state, Ledger(prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens))
    if event.evaluation in state.evaluations:
        shards = state.evaluations[event.evaluation].shards.set(event.shard, event.shards)
        return _set_evaluation(state, event.evaluation, shards=shards)
    if event.evaluation in state.trainings:
        fresh = state.trainings[event.evaluation].fresh
        shards = fresh.get(event.round, Map()).set(event.shard, event.shards)
        return _set_training(state, event.evaluation, fresh=fresh.set(event.round, shards))
    return state


TrainingFact = TrainingRequested | RoundRequested | RoundTrained | AdapterTrained


def _apply_training(state: RunState, event_id: str, event: TrainingFact) -> RunState:
    match event:
        case TrainingRequested():
            return _replace(state, trainings=state.trainings.set(event_id, Training(event_id, event)))
        case RoundRequested():
            found = state.trainings.get(event.training)
            asked = found.asked if found else Map()
            return _set_training(state, event.training, asked=asked.set(event.round, event_id))
        case RoundTrained():
            found = state.trainings.get(event.training)
            state = _charged(state, Ledger(training_tokens=event.tokens))
            return _set_training(state, event.training, rounds=(*(found.rounds if found else ()), event))
        case AdapterTrained():
            state = _replace(state, adapters=_keep_first(state.adapters, event.adapter.digest, event))
            return _set_training(state, event.training, outcome=event)
        case _:
            assert_never(event)


def _set_evaluation(state: RunState, evaluation: str, **changes: object) -> RunState:
    """A fact about an evaluation that the log does not hold changes nothing: the fold is total."""
    found = state.evaluations.get(evaluation)
    if found is None:
        return state
    return _replace(state, evaluations=state.evaluations.set(evaluation, _replace(found, **changes)))


def _set_training(state: RunState, training: str, **changes: object) -> RunState:
    found = state.trainings.get(training)
    if found is None:
        return state
    return _replace(state, trainings=state.trainings.set(training, _replace(found, **changes)))

"""The trainer's rules: rounds of an update, fresh rollouts between them, and when an adapter is done.

Pure. The arithmetic of a round is in `rounds`; what it made comes back here as a fact.
"""

from __future__ import annotations

from typing import NamedTuple

from resia.events import (
    AdapterTrained,
    Algorithm,
    Blob,
    Candidate,
    DriftRequested,
    EngineSettings,
    EvaluationCompleted,
    Event,
    Fact,
    RolloutsRequested,
    RoundRequested,
    RoundTrained,
    RunRequested,
    ShardSampled,
    Slot,
    TrainingFailed,
    TrainingRequested,
    TrainingSettings,
)
from resia.events.ids import seed_for
from resia.events.settings import OFF_POLICY
from resia.replay.state import RunState, Training

DECIDES = (TrainingRequested, ShardSampled, RoundTrained, EvaluationCompleted)
SERVED = "vllm"  # a server over the trainer's own base; an endpoint's weights are not here to compare with
DRIFT_ROLLOUTS = 16  # of an evaluation are compared, spread over all of them


class Plan(NamedTuple):
    """How an update is cut: `total` optimiser steps, `each` a round, in `rounds`; the last takes what is left."""

    rounds: int
    each: int
    total: int

    def steps(self, number: int) -> int:
        """Steps of round `number`, from 0."""
        return min(self.each, self.total - self.each * number)


def plan(algorithm: Algorithm, settings: TrainingSettings) -> Plan:
    """Rounds of `algorithm`. Off-policy ones take all their steps on one batch, cut into rounds that are kept one by
    one."""
    if algorithm == "best_of_n":
        return _cut(settings.bon_steps, settings.bon_rounds)
    if algorithm == "dpo":
        return _cut(settings.dpo_steps, settings.dpo_rounds)
    return Plan(settings.rounds, settings.steps_per_round, settings.rounds * settings.steps_per_round)


def _cut(steps: int, rounds: int) -> Plan:
    """At most `rounds` rounds of equal size but the last, none of them empty."""
    each = -(-steps // min(rounds, steps))
    return Plan(-(-steps // each), each, steps)


def decide(state: RunState, fact: Fact) -> list[Event]:
    """The next round, the rollouts it needs, or the adapter."""
    request = state.request
    if request is None:
        return []
    event = fact.event
    match event:
        case TrainingRequested():
            return [_first_round(state, fact.envelope.id, event)]
        case ShardSampled(purpose="training"):
            return _sampled(state.trainings[event.evaluation], event)
        case RoundTrained():
            return _after_round(state, request, event)
        case EvaluationCompleted():
            return _drift(request.settings.engine, event)
        case _:
            return []


def _drift(engine: EngineSettings, event: EvaluationCompleted) -> list[Event]:
    """What is to be compared of an evaluation that a server sampled. A test is left out: its candidates were measured
    before, and the run ends with it."""
    if engine.kind != SERVED or event.purpose in ("test", "baseline") or not event.rollouts:
        return []
    every = -(-len(event.rollouts) // DRIFT_ROLLOUTS)
    return [DriftRequested(event.request, event.candidate, event.rollouts[::every], engine.drift_limit)]


def _first_round(state: RunState, training: str, event: TrainingRequested) -> Event:
    rollouts = _recorded(state, event)
    if not rollouts:
        return TrainingFailed(training, event.iteration, event.algorithm, 0, -1, "the champion has no search rollouts")
    return _round(training, event, 0, rollouts, event.adapter, None)


def _recorded(state: RunState, event: TrainingRequested) -> tuple[str, ...]:
    """The champion's own search rollouts, which were sampled and not greedy."""
    held = state.evaluations[event.evaluation].rollouts
    return tuple(sorted(i for i, r in held.items() if r.split == "search" and not r.greedy))


def _round(
    training: str,
    event: TrainingRequested,
    number: int,
    rollouts: tuple[str, ...],
    adapter: Blob | None,
    optimizer: Blob | None,
) -> RoundRequested:
    steps = plan(event.algorithm, event.settings).steps(number)
    seed = seed_for(event.seed, "round", number)
    return RoundRequested(training, event.algorithm, number, steps, rollouts, adapter, optimizer, seed)


def _sampled(training: Training, event: ShardSampled) -> list[Event]:
    """The next update once every shard of the round is in."""
    if not training.round_sampled(event.round) or event.round in training.asked or training.outcome is not None:
        return []
    request = training.request
    rollouts = tuple(sorted(i for i, r in training.rollouts.items() if r.round == event.round))
    if not rollouts:
        error = f"every rollout of round {event.round} failed by infrastructure"
        return [TrainingFailed(training.id, request.iteration, request.algorithm, event.round, -1, error)]
    before = next(r for r in training.rounds if r.round == event.round - 1)
    return [_round(training.id, request, event.round, rollouts, before.adapter, before.optimizer)]


def _after_round(state: RunState, run: RunRequested, event: RoundTrained) -> list[Event]:
    training = state.trainings[event.training]
    request, following = training.request, event.round + 1
    if training.outcome is not None:
        return []
    if following >= plan(event.algorithm, request.settings).rounds:
        return [_finished(training, run, event)]
    if event.algorithm in OFF_POLICY:
        rollouts = _recorded(state, request)
        return [_round(training.id, request, following, rollouts, event.adapter, event.optimizer)]
    return list(_ask_rollouts(training, run, event, following))


def _ask_rollouts(training: Training, run: RunRequested, event: RoundTrained, number: int) -> list[RolloutsRequested]:
    """`groups` search items in turn, `group_size` rollouts each, sampled with the adapter of the round before."""
    request, settings = training.request, training.request.settings
    items = run.items["search"]
    chosen = [items[(number * settings.groups + n) % len(items)] for n in range(settings.groups)]
    slots = [
        Slot("search", item, n * settings.group_size + index, seed_for(request.seed, "rollout", number, n, index))
        for n, item in enumerate(chosen)
        for index in range(settings.group_size)
    ]
    size = run.settings.sampling.shard_size
    parts = [tuple(slots[i : i + size]) for i in range(0, len(slots), size)]
    candidate = Candidate(request.harness, event.adapter)
    return [
        RolloutsRequested(training.id, "training", candidate, part, shard, len(parts), number)
        for shard, part in enumerate(parts)
    ]


def _finished(training: Training, run: RunRequested, event: RoundTrained) -> AdapterTrained:
    rounds = {r.round: r for r in training.rounds}.values()
    return AdapterTrained(
        training.id,
        training.request.iteration,
        event.algorithm,
        event.adapter,
        training.request.adapter,
        training.request.settings.rank,
        len(rounds),
        sum(r.steps for r in rounds),
        sum(r.tokens for r in rounds),
        run.model_digest,
    )

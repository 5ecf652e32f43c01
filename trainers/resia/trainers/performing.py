"""The trainer at work: perform one RoundRequested, step facts as they come, the adapter stored before it is named.

A round that another worker began goes on from its last checkpoint; see `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from resia.events import (
    Blob,
    Blobs,
    Event,
    Fact,
    Manifest,
    RolloutRecorded,
    RoundRequested,
    RoundTrained,
    StepTrained,
    TrainingFailed,
    TrainingSettings,
    decode_trajectory,
)
from resia.events.errors import NoSignal, TrainerError, boundary
from resia.replay.state import RunState, Training

from .batch import Batch, Rollout, batch_of
from .checkpoint import ADAPTER_MEDIA, OPTIMIZER_MEDIA, begun, store
from .distributed import round_together
from .objectives import objective_of
from .rounds import RoundResult, Step

if TYPE_CHECKING:
    from .policy import Policy


class TrainerPorts(NamedTuple):
    """All that training may touch. `policy` loads the base once and is asked again for every round; `clock` is
    monotonic seconds; `live` publishes progress that no log keeps."""

    policy: Callable[[TrainingSettings], Policy]
    manifest: Callable[[], Manifest]
    blobs: Blobs
    clock: Callable[[], float]
    live: Callable[[dict[str, Any]], None]


def train(state: RunState, fact: Fact, ports: TrainerPorts) -> Iterator[list[Event]]:
    """Perform RoundRequested. A failure to train is a fact too, and leaves the champion's adapter as it is; a store
    that fails is no verdict on the training, so BlobError goes on to the worker, and the round is done again."""
    event = fact.event
    assert isinstance(event, RoundRequested)
    training = state.trainings[event.training]
    try:
        yield from _train(state, fact.envelope.id, event, training, ports)
    except TrainerError as cause:
        iteration = training.request.iteration
        yield [TrainingFailed(event.training, iteration, event.algorithm, event.round, cause.step, str(cause))]


def _train(
    state: RunState, request: str, event: RoundRequested, training: Training, ports: TrainerPorts
) -> Iterator[list[Event]]:
    settings = training.request.settings
    about = {"training": event.training, "algorithm": event.algorithm, "steps": event.steps}
    ports.live({"kind": "round", "round": event.round, **about})
    policy = ports.policy(settings)
    found = begun(training, event.round, ports.manifest(), ports.blobs)
    values = "values" in objective_of(event.algorithm).needs
    policy.set_adapter(_file(event.adapter, ports.blobs), event.seed, values=values)
    batch = batch_of(_rollouts(state, event, training, ports.blobs), policy.context)
    optimizer = _file(event.optimizer, ports.blobs)
    # The champion's adapter is the one that the training began with; without it the reference is the base.
    reference = _file(training.request.adapter, ports.blobs) if settings.ref == "champion" else None
    given = (batch, event.algorithm, settings, event.steps, optimizer, ports.clock, reference, found.saved)
    steps = round_together(policy, *given)
    for recorded in found.steps:  # as they stand: each has its id and its place already
        yield [recorded]
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            yield [_round_fact(request, event, end.value, ports)]
            return
        except NoSignal:
            if event.round == 0:
                raise
            # What earlier rounds learned stands: this one only goes by without an update.
            yield [_idle_round(request, event, batch, ports)]
            return
        yield [_step_fact(event, step, ports)]


def _file(blob: Blob | None, blobs: Blobs) -> bytes | None:
    return blobs.get(blob) if blob else None


def _rollouts(state: RunState, event: RoundRequested, training: Training, blobs: Blobs) -> list[Rollout]:
    """The round's rollouts with their trajectories: of the champion's evaluation, or sampled for this training.

    Named by item and index: event ids hash the run's name, and two runs of one seed must train on one order. One
    without a turn, because the model had no room for any, is left out: it holds nothing to learn from. Raises
    TrainerError for a rollout that the log has not recorded, or whose trajectory is none.
    """
    evaluated = state.evaluations.get(training.request.evaluation)
    held = [training.rollouts, *([evaluated.rollouts] if evaluated else [])]
    found = []
    for id_ in event.rollouts:
        recorded = next((rollouts[id_] for rollouts in held if id_ in rollouts), None)
        if recorded is None:
            raise TrainerError(
                f"round {event.round} asks for rollout {id_}, which was recorded neither for this training nor for the "
                "champion's evaluation"
            )
        found.append(_rollout(recorded, blobs))
    return [rollout for rollout in found if rollout.trajectory.turns]


def _rollout(r: RolloutRecorded, blobs: Blobs) -> Rollout:
    name = f"{r.item}/{r.index:06d}"
    with boundary(TrainerError, f"the trajectory of rollout {name} cannot be read"):
        trajectory = decode_trajectory(blobs.get(r.trajectory))
    return Rollout(name, r.item, r.reward, r.success, r.failure, trajectory)


def _step_fact(event: RoundRequested, step: Step, ports: TrainerPorts) -> StepTrained:
    return StepTrained(
        event.training,
        event.round,
        step.step,
        step.loss,
        step.kl,
        step.grad_norm,
        step.clip_fraction,
        step.ess,
        step.learning_rate,
        step.tokens,
        step.tokens_per_s,
        step.scale,
        step.step_kl,
        store(step.saved, ports.manifest(), ports.blobs) if step.saved else None,
    )


def _idle_round(request: str, event: RoundRequested, batch: Batch, ports: TrainerPorts) -> RoundTrained:
    assert event.adapter is not None  # a later round begins where an earlier one ended
    return RoundTrained(
        request,
        event.training,
        event.algorithm,
        event.round,
        event.adapter,
        event.optimizer,
        steps=0,
        used=0,
        dropped=len(batch.samples),
        reward_mean=float(batch.rewards().mean()),
        tokens=0,
        manifest=ports.manifest(),
    )


def _round_fact(request: str, event: RoundRequested, result: RoundResult, ports: TrainerPorts) -> RoundTrained:
    return RoundTrained(
        request,
        event.training,
        event.algorithm,
        event.round,
        ports.blobs.put(result.adapter, ADAPTER_MEDIA),
        ports.blobs.put(result.optimizer, OPTIMIZER_MEDIA),
        result.steps,
        result.used,
        result.dropped,
        result.reward_mean,
        result.tokens,
        ports.manifest(),
        result.capped,
    )

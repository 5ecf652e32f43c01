"""Drift: how far the log-probabilities that a server recorded are from those of the trainer's own model.

An importance ratio divides one by the other, so a server that computes something else (another adapter, another
precision, log-probabilities at another temperature) would silently bend every update. What
is compared is the decider's rule. Collaborators: policy recomputes, packing cuts into passes. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from resia.events import (
    DriftFailed,
    DriftMeasured,
    DriftRequested,
    Event,
    Fact,
    TrainingSettings,
    Trajectory,
    decode_trajectory,
)
from resia.events.errors import TrainerError, boundary
from resia.replay.state import RunState

from .batch import Floats, Row
from .packing import pack

if TYPE_CHECKING:
    from .performing import TrainerPorts
    from .policy import Policy


class Drift(NamedTuple):
    """Absolute differences in nats over `tokens` completion tokens."""

    tokens: int
    mean: float
    largest: float


def measure(state: RunState, fact: Fact, ports: TrainerPorts) -> Iterator[list[Event]]:
    """Perform DriftRequested. A store that fails goes on to the worker, as in training."""
    event = fact.event
    assert isinstance(event, DriftRequested)
    try:
        rows = _rows(state, event, ports)
        policy = ports.policy(_training(state))
        if policy.world.spread:
            raise TrainerError("the base's layers are spread over ranks, which compute together in a round only")
        adapter = ports.blobs.get(event.candidate.adapter) if event.candidate.adapter else None
        found = drift(policy, rows, adapter, _training(state).micro_tokens)
    except TrainerError as cause:
        yield [DriftFailed(fact.envelope.id, event.evaluation, str(cause))]
        return
    yield [
        DriftMeasured(
            fact.envelope.id,
            event.evaluation,
            found.tokens,
            found.mean,
            found.largest,
            event.bound,
            found.mean > event.bound,
            _engine(state),
            ports.manifest(),
        )
    ]


def drift(policy: Policy, rows: Sequence[Row], adapter: bytes | None, micro_tokens: int) -> Drift:
    """Of the recorded log-probabilities of `rows` under the base with `adapter` (None: the base alone). Raises
    TrainerError where there is no token or a recomputed one is not finite."""
    import torch

    parts: list[Floats] = []
    what = "the log-probabilities cannot be recomputed"
    with boundary(TrainerError, what), policy.standing_in(adapter), torch.no_grad():
        for indices in pack(rows, micro_tokens):
            padded = policy.pad([rows[index] for index in indices])
            own_B_T = policy.logprobs(padded).double().cpu().numpy()
            parts.append(np.abs(own_B_T - padded.logprobs_B_T)[padded.mask_B_T])
    differences = np.concatenate(parts) if parts else np.zeros(0)
    if not differences.size or not np.isfinite(differences).all():
        raise TrainerError(f"{differences.size} tokens to compare, and not all differences are finite numbers")
    return Drift(int(differences.size), float(differences.mean()), float(differences.max()))


def rows_of(trajectory: Trajectory, sample: int = 0) -> list[Row]:
    """A row a model call. Greedy calls hold their log-probabilities at temperature 1."""
    temperature = trajectory.temperature or 1.0
    return [
        Row(sample, number, turn.prompt_ids, turn.completion_ids, turn.logprobs, temperature, 0.0)
        for number, turn in enumerate(trajectory.turns)
        if turn.completion_ids
    ]


def _rows(state: RunState, event: DriftRequested, ports: TrainerPorts) -> list[Row]:
    found = state.evaluations.get(event.evaluation)
    held = [found.rollouts[id_] for id_ in event.rollouts if id_ in found.rollouts] if found else []
    rows: list[Row] = []
    for number, rollout in enumerate(held):
        data = ports.blobs.get(rollout.trajectory)
        with boundary(TrainerError, f"the trajectory of rollout {rollout.item}/{rollout.index} cannot be read"):
            rows += rows_of(decode_trajectory(data), number)
    for row in rows:
        if len(row.logprobs) != len(row.completion_ids):
            raise TrainerError(f"{len(row.logprobs)} log-probabilities for {len(row.completion_ids)} completion tokens")
    return rows


def _training(state: RunState) -> TrainingSettings:
    """The settings of the policy that is loaded already, if any: another's would load the base again."""
    assert state.request is not None  # nothing is performed before the run is requested
    latest = max(state.trainings.values(), key=lambda t: t.request.iteration, default=None)
    return latest.request.settings if latest else state.request.settings.training


def _engine(state: RunState) -> str:
    assert state.request is not None
    return state.request.settings.engine.kind

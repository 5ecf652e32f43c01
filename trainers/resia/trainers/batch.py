"""The one batch type that every objective learns from, built from recorded rollouts.

`Batch` holds samples (rollouts) and their rows (turns: one prompt, one completion); `batch_of` checks everything
that would make a gradient meaningless before any model is loaded. Collaborators: objectives choose and weigh rows,
packing pads them. Knows nothing of torch, models or algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resia.events import Trajectory, Turn
from resia.events.errors import TrainerError

Floats = npt.NDArray[np.float64]
# Sampled log-probabilities come from low-precision softmaxes, so a certain token may lie a rounding above 0.
LOGPROB_ROUNDING = 1e-3


class Rollout(NamedTuple):
    """What the log holds of one scored rollout. `group` is the item; `failure` None when the answer was valid."""

    id: str
    group: str
    reward: float
    success: bool
    failure: str | None
    trajectory: Trajectory


class Row(NamedTuple):
    """One model call. `logprobs` (natural log, as long as `completion_ids`) are of softmax(logits / temperature)
    under the behaviour policy; `reward` is earned on the last token of the completion. `failed`: nothing could be made
    of it, and the step was tried again or the rollout ended."""

    sample: int
    turn: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    temperature: float
    reward: float
    failed: bool = False


class Sample(NamedTuple):
    """One rollout: its turns in order, `reward` of the whole."""

    id: str
    group: str
    reward: float
    success: bool
    failure: str | None
    turns: tuple[Row, ...]

    @property
    def completion_tokens(self) -> int:
        return sum(len(row.completion_ids) for row in self.turns)


class Batch(NamedTuple):
    """Samples sorted by id, so that neither sums nor packing depend on the order in which they came."""

    samples: tuple[Sample, ...]

    def rewards(self) -> Floats:
        """Shape (samples,)."""
        return np.array([sample.reward for sample in self.samples], dtype=np.float64)

    def groups(self) -> dict[str, list[int]]:
        """Sample indices of every group; groups in the order of their names."""
        members: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            members.setdefault(sample.group, []).append(index)
        return dict(sorted(members.items()))


def batch_of(rollouts: Sequence[Rollout], context: int) -> Batch:
    """Batch of `rollouts`, whose turns must fit into `context` tokens (prompt and completion together).

    Raises TrainerError when there is no rollout, ids repeat, a reward (of a rollout or a turn) or log-probability is
    not finite, a rollout was sampled greedily (temperature 0: its log-probabilities are of another distribution than
    the one sampled), a turn lacks a prompt or a completion, or a turn does not fit.
    """
    if not rollouts:
        raise TrainerError("the batch is empty: training needs at least one rollout")
    ordered = sorted(rollouts, key=lambda rollout: rollout.id)
    for before, after in pairwise(ordered):
        if before.id == after.id:
            raise TrainerError(f"rollout {after.id} is in the batch twice")
    return Batch(tuple(_sample(index, rollout, context) for index, rollout in enumerate(ordered)))


def _sample(index: int, rollout: Rollout, context: int) -> Sample:
    temperature = rollout.trajectory.temperature
    if not math.isfinite(rollout.reward):
        raise TrainerError(f"rollout {rollout.id} has reward {rollout.reward}: rewards must be finite")
    if not (math.isfinite(temperature) and temperature > 0):
        raise TrainerError(
            f"rollout {rollout.id} was sampled at temperature {temperature}: only rollouts above 0 can be learned from"
        )
    if not rollout.trajectory.turns:
        raise TrainerError(f"rollout {rollout.id} has no turn, so there is nothing to learn from")
    rows = tuple(_row(index, number, rollout, turn, context) for number, turn in enumerate(rollout.trajectory.turns))
    return Sample(rollout.id, rollout.group, float(rollout.reward), rollout.success, rollout.failure, rows)


def _row(index: int, number: int, rollout: Rollout, turn: Turn, context: int) -> Row:
    where = f"turn {number} of rollout {rollout.id}"
    if not turn.prompt_ids or not turn.completion_ids:
        raise TrainerError(
            f"{where} has {len(turn.prompt_ids)} prompt and {len(turn.completion_ids)} completion tokens: "
            "both need at least one"
        )
    if len(turn.logprobs) != len(turn.completion_ids):
        raise TrainerError(
            f"{where} has {len(turn.logprobs)} log-probabilities for {len(turn.completion_ids)} completion tokens"
        )
    if not all(math.isfinite(value) and value <= LOGPROB_ROUNDING for value in turn.logprobs):
        raise TrainerError(f"{where} has a log-probability that is not a finite number up to 0")
    if not math.isfinite(turn.reward):
        raise TrainerError(f"{where} has reward {turn.reward}: rewards must be finite")
    length = len(turn.prompt_ids) + len(turn.completion_ids)
    if length > context:
        raise TrainerError(f"{where} is {length} tokens long, over the model's context of {context}")
    return Row(
        index,
        number,
        turn.prompt_ids,
        turn.completion_ids,
        turn.logprobs,
        rollout.trajectory.temperature,
        turn.reward,
        bool(turn.failure),
    )

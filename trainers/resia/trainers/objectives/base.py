"""What an objective is: a pure choice of rows and their advantages, and a loss over one micro-batch.

Collaborators: `rounds` calls `select` once a round and `loss` on every micro-batch. Knows nothing of models or of
how rows are packed; torch is needed for its tensors' methods alone, so importing an objective does not load it.
"""

# ruff: noqa: N815 - a field that holds a tensor carries its shape

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch, Floats, Row

if TYPE_CHECKING:
    import torch


class Selection(NamedTuple):
    """Rows that carry gradient with one advantage (or weight) a row. The sum of token losses over all rows is divided
    by `normalizer`; `used` and `dropped` count samples."""

    rows: tuple[Row, ...]
    advantages_R: Floats
    normalizer: float
    used: int
    dropped: int


class Loss(NamedTuple):
    """`total` (0-d, with gradient) sums the token losses over the mask; `clipped_B_T` marks the tokens whose
    gradient was clipped away."""

    total: torch.Tensor
    clipped_B_T: torch.Tensor


class Objective(Protocol):
    """One algorithm. Its loss must be a sum over tokens, so that micro-batches add up to the whole batch."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        """Raises TrainerError when the batch holds nothing to learn from."""
        ...

    def loss(
        self,
        logprobs_B_T: torch.Tensor,
        old_logprobs_B_T: torch.Tensor,
        advantages_B_T: torch.Tensor,
        mask_B_T: torch.Tensor,
        settings: TrainingSettings,
    ) -> Loss:
        """Token losses of one micro-batch. `old_logprobs_B_T` are the behaviour policy's, `mask_B_T` is boolean and
        true on completion tokens; values off the mask are finite and have no influence."""
        ...


def select_samples(batch: Batch, advantages: dict[int, float]) -> tuple[tuple[Row, ...], list[float]]:
    """Every turn of the samples named by `advantages`, each with its sample's advantage."""
    rows: list[Row] = []
    values: list[float] = []
    for index in sorted(advantages):
        for row in batch.samples[index].turns:
            rows.append(row)
            values.append(advantages[index])
    return tuple(rows), values

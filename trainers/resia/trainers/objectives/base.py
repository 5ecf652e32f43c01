"""What an objective is: a pure choice of rows and their weights, and a loss over one micro-batch.

Collaborators: `gradient` calls `select` and `estimate` once a round, `reweigh` once a step and `loss` on every
micro-batch. Knows nothing of models or of how rows are packed; torch is needed for its tensors' methods alone, so
importing an objective does not load it.
"""

# ruff: noqa: N815 - a field that holds a tensor carries its shape

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch, Floats, Row

if TYPE_CHECKING:
    import torch

# What the model computes for an objective beside log-probabilities: those of the reference policy; the value head's
# estimates; each rollout's log-ratio to the reference before every step, because its loss joins several rollouts.
Need = Literal["reference", "values", "log_ratios"]


class Selection(NamedTuple):
    """Rows that carry gradient with one advantage (or weight) a row. The sum of the losses over all rows is divided
    by `normalizer`; `used` and `dropped` count samples, `capped` those whose advantage was cut off. `returns_R` are
    targets of the value head, empty without one; `pairs` are (better, worse) indices of samples."""

    rows: tuple[Row, ...]
    advantages_R: Floats
    normalizer: float
    used: int
    dropped: int
    capped: int = 0
    returns_R: Floats = np.empty(0)
    pairs: tuple[tuple[int, int], ...] = ()


class Tokens(NamedTuple):
    """One micro-batch of B rows, T the longest completion, as a loss sees it.

    `old_logprobs_B_T` are the behaviour policy's, `reference_B_T` the reference policy's (0 where the objective does
    not need them), `values_B` the value head's at the end of the prompt and `returns_B` its targets (None without).
    `mask_B_T` is boolean and true on completion tokens; values off the mask are finite and have no influence.
    """

    logprobs_B_T: torch.Tensor
    old_logprobs_B_T: torch.Tensor
    reference_B_T: torch.Tensor
    advantages_B_T: torch.Tensor
    mask_B_T: torch.Tensor
    values_B: torch.Tensor | None = None
    returns_B: torch.Tensor | None = None


class Loss(NamedTuple):
    """`total` (0-d, with gradient) sums the losses of the rows; `clipped_B_T` marks the tokens whose gradient was
    clipped away; `values` sums those of the value head, and is averaged over rows."""

    total: torch.Tensor
    clipped_B_T: torch.Tensor
    values: torch.Tensor | None = None


class Objective(ABC):
    """One algorithm. Its loss must be a sum over rows, so that micro-batches add up to the whole batch."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def asks(self, settings: TrainingSettings) -> frozenset[Need]:  # noqa: ARG002 - for those it makes a difference to
        """Of `needs`, what these settings leave to be computed."""
        return self.needs

    @abstractmethod
    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        """Raises NoSignal when the batch holds nothing to learn from."""

    @abstractmethod
    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:
        """Losses of one micro-batch."""

    def estimate(
        self,
        selection: Selection,
        values_R: Floats,  # noqa: ARG002 - for those that need values
        settings: TrainingSettings,  # noqa: ARG002
    ) -> Selection:
        """Advantages and returns from the values at the beginning of the round; asked of those that need values."""
        return selection

    def reweigh(
        self,
        selection: Selection,
        log_ratios: Mapping[int, float],  # noqa: ARG002 - for those that need log-ratios
        settings: TrainingSettings,  # noqa: ARG002
    ) -> tuple[Selection, float | None]:
        """The step's advantages, and its loss where the losses of rows do not add up to it; `log_ratios` are
        log pi / pi_ref of each sample in the selection. Asked of those that need log-ratios."""
        return selection, None


def select_samples(batch: Batch, advantages: Mapping[int, float]) -> tuple[tuple[Row, ...], Floats]:
    """Every turn of the samples named by `advantages`, each with its sample's advantage."""
    rows: list[Row] = []
    values: list[float] = []
    for index in sorted(advantages):
        for row in batch.samples[index].turns:
            rows.append(row)
            values.append(advantages[index])
    return tuple(rows), np.array(values, dtype=np.float64)


def token_mean(batch: Batch, advantages: Mapping[int, float], capped: int = 0) -> Selection:
    """The samples named by `advantages`, every completion token of theirs weighing the same."""
    rows, advantages_R = select_samples(batch, advantages)
    tokens = sum(batch.samples[index].completion_tokens for index in advantages)
    dropped = len(batch.samples) - len(advantages)
    return Selection(rows, advantages_R, float(tokens), len(advantages), dropped, capped)

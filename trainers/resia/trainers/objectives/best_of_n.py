"""Best-of-N behaviour cloning: cross-entropy on the best successful rollouts of the whole batch.

Kept are the `bon_top` successes (never one that failed) of highest reward, ties broken by fewer completion tokens,
then by id; each token of theirs weighs the same. The log-probability is that of the distribution that is sampled,
softmax(logits / temperature), so at temperature 1 this is plain cross-entropy over completion tokens.
Source: RAFT, Dong et al., arXiv:2304.06767.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resia.events.errors import TrainerError
from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Selection, select_samples

if TYPE_CHECKING:
    import torch


def best(batch: Batch, top: int) -> list[int]:
    """Indices of at most `top` successful samples, best first."""
    kept = [i for i, sample in enumerate(batch.samples) if sample.success and sample.failure is None]

    def rank(index: int) -> tuple[float, int, str]:
        sample = batch.samples[index]
        return -sample.reward, sample.completion_tokens, sample.id

    return sorted(kept, key=rank)[:top]


class BestOfN:
    """The objective; see the module for its formula."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        kept = best(batch, settings.bon_top)
        if not kept:
            raise TrainerError(
                f"none of the {len(batch.samples)} rollouts is a success: best-of-N needs at least 1 to clone"
            )
        rows, values = select_samples(batch, dict.fromkeys(kept, 1.0))
        tokens = sum(batch.samples[index].completion_tokens for index in kept)
        return Selection(
            rows, np.array(values, dtype=np.float64), float(tokens), len(kept), len(batch.samples) - len(kept)
        )

    def loss(
        self,
        logprobs_B_T: torch.Tensor,
        old_logprobs_B_T: torch.Tensor,  # noqa: ARG002 - cloning asks nothing of the behaviour policy
        advantages_B_T: torch.Tensor,
        mask_B_T: torch.Tensor,
        settings: TrainingSettings,  # noqa: ARG002 - the formula has no constant
    ) -> Loss:
        losses_B_T = -(advantages_B_T * logprobs_B_T)
        return Loss(losses_B_T.masked_fill(~mask_B_T, 0.0).sum(), mask_B_T & ~mask_B_T)

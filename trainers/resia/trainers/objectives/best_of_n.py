"""Best-of-N behaviour cloning: cross-entropy on the best successful rollouts of the whole batch.

Kept are the `bon_top` successes (never one that failed) of highest reward, ties broken by fewer completion tokens,
then by id; each token of theirs weighs the same, but for those of tries that failed and were made again. The
log-probability is that of the distribution that is sampled, softmax(logits / temperature), so at temperature 1 this is
plain cross-entropy over completion tokens.
Source: RAFT, Dong et al., arXiv:2304.06767.
"""

from __future__ import annotations

import numpy as np

from resia.events.errors import NoSignal
from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Objective, Selection, Tokens


def best(batch: Batch, top: int) -> list[int]:
    """Indices of at most `top` successful samples, best first."""
    kept = [i for i, sample in enumerate(batch.samples) if sample.success and sample.failure is None]

    def rank(index: int) -> tuple[float, int, str]:
        sample = batch.samples[index]
        return -sample.reward, sample.completion_tokens, sample.id

    return sorted(kept, key=rank)[:top]


class BestOfN(Objective):
    """The objective; see the module for its formula."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        kept = best(batch, settings.bon_top)
        if not kept:
            raise NoSignal(
                f"none of the {len(batch.samples)} rollouts is a success: best-of-N needs at least 1 to clone"
            )
        # A try that failed on the way to a success is not what made it one.
        rows = tuple(row for index in sorted(kept) for row in batch.samples[index].turns if not row.failed)
        tokens = sum(len(row.completion_ids) for row in rows)
        return Selection(rows, np.ones(len(rows)), float(tokens), len(kept), len(batch.samples) - len(kept), 0)

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:  # noqa: ARG002 - no constant in the formula
        losses_B_T = -(tokens.advantages_B_T * tokens.logprobs_B_T)
        return Loss(losses_B_T.masked_fill(~tokens.mask_B_T, 0.0).sum(), tokens.mask_B_T & ~tokens.mask_B_T)

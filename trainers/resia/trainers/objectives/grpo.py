"""GRPO: rewards standardised within a group of rollouts of one item, clipped importance ratio.

A_i = (r_i - mean_g) / (std_g + eps), with std_g the unbiased one (ddof 1); groups of one rollout and groups whose
rewards do not differ carry no gradient and are dropped (DAPO, arXiv:2503.14476). The loss is the mean over all
completion tokens that are left, TRL's `dapo` (one accumulation window) and `bnpo` (one batch).
With `dr_grpo` (arXiv:2503.20783) A_i = r_i - mean_g and the sum is divided by rollouts x longest rollout, TRL's
`dr_grpo` with that length as `max_completion_length`. Source: Shao et al., arXiv:2402.03300, equation 3 with
beta 0: the policy is kept near the champion by few steps a round, and the KL is recorded.
"""

from __future__ import annotations

from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Objective, Selection, Tokens, token_mean
from .groups import contrasts
from .ratio import clipped_tokens


def group_advantages(batch: Batch, settings: TrainingSettings) -> dict[int, float]:
    """Advantage of every sample in a group whose rewards differ, by sample index."""
    advantages: dict[int, float] = {}
    for members, rewards_G in contrasts(batch, "GRPO"):
        scale = 1.0 if settings.dr_grpo else float(rewards_G.std(ddof=1)) + settings.advantage_epsilon
        centred_G = (rewards_G - rewards_G.mean()) / scale
        advantages.update(zip(members, centred_G.tolist(), strict=True))
    return advantages


class Grpo(Objective):
    """The objective; see the module for its formula."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        advantages = group_advantages(batch, settings)
        selection = token_mean(batch, advantages)
        if not settings.dr_grpo:
            return selection
        longest = max(batch.samples[index].completion_tokens for index in advantages)
        return selection._replace(normalizer=float(len(advantages) * longest))

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:
        return clipped_tokens(tokens, settings)

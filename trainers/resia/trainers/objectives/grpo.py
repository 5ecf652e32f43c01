"""GRPO: rewards standardised within a group of rollouts of one item, clipped importance ratio.

A_i = (r_i - mean_g) / (std_g + eps), with std_g the unbiased one (ddof 1); groups of one rollout and groups whose
rewards do not differ carry no gradient and are dropped (DAPO, arXiv:2503.14476). The loss is the mean over all
completion tokens that are left, TRL's `dapo` (one accumulation window) and `bnpo` (one batch).
With `dr_grpo` (arXiv:2503.20783) A_i = r_i - mean_g and the sum is divided by rollouts x longest rollout, TRL's
`dr_grpo` with that length as `max_completion_length`. Source: Shao et al., arXiv:2402.03300, equation 3 with
beta 0: the policy is kept near the champion by few steps a round, and the KL is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resia.events.errors import NoSignal, TrainerError
from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Selection, select_samples

if TYPE_CHECKING:
    import torch

# Below this the rewards of a group count as equal; the landscape's `informative` uses the same.
EQUAL_REWARDS_STD = 1e-6


def group_advantages(batch: Batch, settings: TrainingSettings) -> dict[int, float]:
    """Advantage of every sample in a group whose rewards differ, by sample index."""
    rewards_S = batch.rewards()
    advantages: dict[int, float] = {}
    for members in batch.groups().values():
        rewards_G = rewards_S[members]
        std = float(rewards_G.std(ddof=1)) if len(members) > 1 else 0.0
        if std <= EQUAL_REWARDS_STD:
            continue
        scale = 1.0 if settings.dr_grpo else std + settings.advantage_epsilon
        centred_G = (rewards_G - rewards_G.mean()) / scale
        advantages.update(zip(members, centred_G.tolist(), strict=True))
    return advantages


class Grpo:
    """The objective; see the module for its formula."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        groups = batch.groups()
        if all(len(members) < 2 for members in groups.values()):
            raise TrainerError(
                f"every one of the {len(groups)} groups has a single rollout: GRPO needs at least 2 of an item"
            )
        advantages = group_advantages(batch, settings)
        if not advantages:
            raise NoSignal(
                f"rewards are constant in each of the {len(groups)} groups, so GRPO has no gradient to follow"
            )
        rows, values = select_samples(batch, advantages)
        lengths = [batch.samples[index].completion_tokens for index in advantages]
        normalizer = len(lengths) * max(lengths) if settings.dr_grpo else sum(lengths)
        return Selection(
            rows, np.array(values, dtype=np.float64), float(normalizer), len(lengths), len(batch.samples) - len(lengths)
        )

    def loss(
        self,
        logprobs_B_T: torch.Tensor,
        old_logprobs_B_T: torch.Tensor,
        advantages_B_T: torch.Tensor,
        mask_B_T: torch.Tensor,
        settings: TrainingSettings,
    ) -> Loss:
        return clipped_ratio(logprobs_B_T, old_logprobs_B_T, advantages_B_T, mask_B_T, settings.clip_epsilon)


def clipped_ratio(
    logprobs_B_T: torch.Tensor,
    old_logprobs_B_T: torch.Tensor,
    advantages_B_T: torch.Tensor,
    mask_B_T: torch.Tensor,
    epsilon: float,
) -> Loss:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) per token with rho = pi/mu (Schulman 2017, arXiv:1707.06347, eq. 7).

    A token is clipped where the minimum is the clipped branch and differs from the other: its gradient is zero.
    """
    ratio_B_T = (logprobs_B_T - old_logprobs_B_T).exp()
    free_B_T = ratio_B_T * advantages_B_T
    bounded_B_T = ratio_B_T.clamp(1.0 - epsilon, 1.0 + epsilon) * advantages_B_T
    losses_B_T = -free_B_T.minimum(bounded_B_T)
    clipped_B_T = (bounded_B_T < free_B_T) & mask_B_T
    return Loss(losses_B_T.masked_fill(~mask_B_T, 0.0).sum(), clipped_B_T)

"""REINFORCE with a leave-one-out baseline and a KL penalty to a reference policy.

A_i = R_i - mean of the other rollouts' R in the group, R the reward of the whole rollout. Every model call is one
action: its ratio is that of the whole completion, clipped, and the loss is a mean over rollouts, so for rollouts of
one turn it is TRL's RLOO at beta 0. To it comes `kl_alpha` KL(pi || pi_ref), the sum over completion tokens of
rho (pi_ref / pi - 1 - log(pi_ref / pi)) with rho = pi / mu of the token: under rollouts from mu its mean is the KL
and the mean of its gradient the KL's gradient, which the estimator without rho does not give (Tang and Munos,
arXiv:2506.09477); TRL's GRPO has the same as `use_bias_correction_kl`. pi_ref is the base model, or the champion with
`ref`. Groups of one rollout have no baseline and are dropped; tied groups stay, because the KL holds them.
Sources: Williams 1992; RLOO, Ahmadian et al., arXiv:2402.14740.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Need, Objective, Selection, Tokens, select_samples
from .groups import contrasts
from .ratio import clipped, truncated

if TYPE_CHECKING:
    import torch


def leave_one_out(batch: Batch) -> dict[int, float]:
    """Advantage of every sample that has peers, by sample index."""
    rewards_S = batch.rewards()
    advantages: dict[int, float] = {}
    for members in batch.groups().values():
        if len(members) > 1:
            rewards_G = rewards_S[members]
            baselines_G = (rewards_G.sum() - rewards_G) / (len(members) - 1)
            advantages.update(zip(members, (rewards_G - baselines_G).tolist(), strict=True))
    return advantages


class ReinforceKl(Objective):
    """The objective; see the module for its formula."""

    needs = frozenset[Need]({"reference"})

    def asks(self, settings: TrainingSettings) -> frozenset[Need]:
        return self.needs if settings.kl_alpha else frozenset()

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:  # noqa: ARG002 - no constant in it
        contrasts(batch, "REINFORCE")
        advantages = leave_one_out(batch)
        rows, advantages_R = select_samples(batch, advantages)
        dropped = len(batch.samples) - len(advantages)
        return Selection(rows, advantages_R, float(len(advantages)), len(advantages), dropped)

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:
        log_ratio_B_T = (tokens.logprobs_B_T - tokens.old_logprobs_B_T).masked_fill(~tokens.mask_B_T, 0.0)
        losses_B, idle_B = clipped(log_ratio_B_T.sum(1), tokens.advantages_B_T[:, 0], settings)
        total = losses_B.sum()
        if settings.kl_alpha:  # at 0 nobody computed the reference
            penalty_B_T = truncated(log_ratio_B_T, settings) * k3(tokens)
            total = total + settings.kl_alpha * penalty_B_T.masked_fill(~tokens.mask_B_T, 0.0).sum()
        return Loss(total, idle_B[:, None] & tokens.mask_B_T)


def k3(tokens: Tokens) -> torch.Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi) of every token, never negative."""
    apart_B_T = tokens.reference_B_T - tokens.logprobs_B_T
    return apart_B_T.expm1() - apart_B_T

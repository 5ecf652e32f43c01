"""Importance ratios pi / mu: cut off, then clipped as PPO does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resia.events.settings import TrainingSettings

from .base import Loss, Tokens

if TYPE_CHECKING:
    import torch


def truncated(log_ratio: torch.Tensor, settings: TrainingSettings) -> torch.Tensor:
    """min(pi / mu, `max_ratio`). Cut off before the exponential, so that no ratio overflows."""
    return log_ratio.clamp(max=math.log(settings.max_ratio)).exp()


def clipped(
    log_ratio: torch.Tensor, advantages: torch.Tensor, settings: TrainingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi/mu (Schulman 2017, arXiv:1707.06347, eq. 7), and where
    its gradient is zero.

    Of itself the minimum is unbounded where A < 0: there rho is cut off at `max_ratio` (TRL's `delta`).
    """
    ratio, epsilon = truncated(log_ratio, settings), settings.clip_epsilon
    free = ratio * advantages
    bounded = ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantages
    cut = (log_ratio > math.log(settings.max_ratio)) & (advantages != 0)
    return -free.minimum(bounded), (bounded < free) | cut


def clipped_tokens(tokens: Tokens, settings: TrainingSettings) -> Loss:
    """The clipped ratio of every completion token on its own."""
    losses_B_T, idle_B_T = clipped(tokens.logprobs_B_T - tokens.old_logprobs_B_T, tokens.advantages_B_T, settings)
    return Loss(losses_B_T.masked_fill(~tokens.mask_B_T, 0.0).sum(), idle_B_T & tokens.mask_B_T)

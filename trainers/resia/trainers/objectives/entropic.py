"""Entropic objective: exponentially tilted rewards, which pull towards the best rollouts of a group.

In a group of G, beta solves KL(softmax(beta r) || uniform) = `entropic_kl` (ln 2) by bisection. With n_max rewards
tied at the best that KL stays below ln(G / n_max); where it cannot reach the target beta is `entropic_beta_max`, which
also bounds it elsewhere. With e = exp(beta r) the weight is w_i = e_i / mean_{j != i} e_j, the advantage A_i = w_i - 1,
at most `entropic_clip` (one winner of 8 would have 10.8); how many were cut off is counted. Groups of one rollout and
groups whose rewards do not differ are dropped. The loss is the clipped ratio, mean over completion tokens.
Source: TTT-Discover, arXiv:2601.16175.
"""

from __future__ import annotations

import math

import numpy as np

from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch, Floats

from .base import Loss, Objective, Selection, Tokens, token_mean
from .groups import contrasts
from .ratio import clipped_tokens

# exp of less is 0 many times over, and differences of such numbers are finite.
LOWEST = -1e12


def tilted(beta: float, rewards_G: Floats) -> Floats:
    """beta r, shifted so that the best has 0."""
    with np.errstate(over="ignore"):
        found_G: Floats = np.maximum(beta * (rewards_G - rewards_G.max()), LOWEST)
    return found_G


def divergence(beta: float, rewards_G: Floats) -> float:
    """KL(softmax(beta r) || uniform) in nats; 0 at beta 0, and it grows with beta."""
    tilted_G = tilted(beta, rewards_G)
    log_sum = math.log(np.exp(tilted_G).sum())
    shares_G = np.exp(tilted_G - log_sum)
    return float((shares_G * (tilted_G - log_sum)).sum()) + math.log(len(rewards_G))


def solve_beta(rewards_G: Floats, target: float, highest: float) -> float:
    """The beta in (0, `highest`] at which the divergence is `target`; `highest` where it stays below up to there."""
    ties = int((rewards_G == rewards_G.max()).sum())
    if math.log(len(rewards_G) / ties) <= target or divergence(highest, rewards_G) <= target:
        return highest
    low, high = 0.0, highest
    while low < (middle := low + (high - low) / 2) < high:  # until no float is left between them
        if divergence(middle, rewards_G) < target:
            low = middle
        else:
            high = middle
    return high


def entropic_weights(rewards_G: Floats, beta: float) -> Floats:
    """w_i - 1 before clipping; in logarithms, since e of all others may be 0 in any precision."""
    tilted_G = tilted(beta, rewards_G)
    others = [np.delete(tilted_G, i) for i in range(len(tilted_G))]
    log_means_G = np.array([o.max() + math.log(np.exp(o - o.max()).mean()) for o in others])
    with np.errstate(over="ignore"):  # infinity is cut off
        weights_G: Floats = np.expm1(tilted_G - log_means_G)
    return weights_G


class Entropic(Objective):
    """The objective; see the module for its formula."""

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        advantages: dict[int, float] = {}
        capped = 0
        for members, rewards_G in contrasts(batch, "the entropic objective"):
            beta = solve_beta(rewards_G, settings.entropic_kl, settings.entropic_beta_max)
            weights_G = entropic_weights(rewards_G, beta)
            capped += int((weights_G > settings.entropic_clip).sum())
            advantages.update(zip(members, weights_G.clip(max=settings.entropic_clip).tolist(), strict=True))
        return token_mean(batch, advantages, capped)

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:
        return clipped_tokens(tokens, settings)

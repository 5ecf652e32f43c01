"""Drawing tokens: one generator a row, inverse-CDF sampling and log-probabilities.

Knows nothing of models or caches: it sees logits and uniforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Drawn(NamedTuple):
    """One token a row and its log-probability (natural log, float32), both of shape (B,)."""

    tokens: torch.Tensor
    logprobs: torch.Tensor


def uniforms(seeds: Sequence[int], length: int) -> torch.Tensor:
    """(B, length) float64 in [0, 1); row i comes from a generator of its own seeded with seeds[i].

    Drawn ahead, one a token, so a row's draws depend neither on its neighbours nor on when they finish.
    """
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def draw(logits_B_V: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> Drawn:
    """Tokens at the `uniform_B` quantiles of softmax(logits / temperature), in vocabulary order.

    Temperature 0 is greedy. Log-probabilities are of the same distribution, at temperature 1 when greedy.
    """
    logprobs_B_V = torch.log_softmax(logits_B_V.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens_B = logprobs_B_V.argmax(dim=-1)
    else:
        cdf_B_V = logprobs_B_V.exp().cumsum(dim=-1, dtype=torch.float64)
        # The sum of the probabilities is 1 only up to rounding, and no draw may fall on or beyond it.
        total_B1 = cdf_B_V[:, -1:]
        target_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
        tokens_B = torch.searchsorted(cdf_B_V, target_B1, right=True)[:, 0]
    return Drawn(tokens_B, logprobs_B_V.gather(1, tokens_B[:, None])[:, 0])

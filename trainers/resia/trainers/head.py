"""Log-probabilities of given tokens under a frozen output layer, without the logits of all tokens in memory.

Logits exist for a chunk of tokens at a time and are overwritten as they are used. Since the layer is frozen, the
derivative of a token's log-probability by its hidden state, (W[token] - sum_v p_v W[v]) / temperature, does not depend
on the loss: the forward pass computes it while the logits are there, so that the backward pass multiplies N x H numbers
and computes no logits again. Collaborator: policy. Knows nothing of rows or prefixes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Logits that exist at a time: 32 MB, 170 tokens of a vocabulary of 49152 in float32.
CHUNK_BYTES = 1 << 25


def token_logprobs(
    head: Any, hidden_N_H: torch.Tensor, tokens_N: torch.Tensor, temperature_N: torch.Tensor
) -> torch.Tensor:
    """Natural logarithms (N,) of softmax(head(hidden) / temperature) at `tokens_N`; float32, or float64 for a float64
    layer. The gradient goes to `hidden_N_H` alone: `head`, a linear layer, is frozen."""
    if torch.is_grad_enabled() and hidden_N_H.requires_grad:
        found: torch.Tensor = _TokenLogprobs.apply(hidden_N_H, head, tokens_N, temperature_N)
        return found
    return _scan(head, hidden_N_H, tokens_N, temperature_N, None)


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden_N_H: torch.Tensor, head: Any, tokens_N: torch.Tensor, temperature_N: torch.Tensor
    ) -> torch.Tensor:
        slopes_N_H = torch.empty_like(hidden_N_H)
        logprobs_N = _scan(head, hidden_N_H, tokens_N, temperature_N, slopes_N_H)
        ctx.save_for_backward(slopes_N_H)
        return logprobs_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream_N: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slopes_N_H,) = ctx.saved_tensors
        return (upstream_N[:, None] * slopes_N_H).to(slopes_N_H.dtype), None, None, None


def _scan(
    head: Any,
    hidden_N_H: torch.Tensor,
    tokens_N: torch.Tensor,
    temperature_N: torch.Tensor,
    slopes_N_H: torch.Tensor | None,
) -> torch.Tensor:
    """The log-probabilities; their derivatives by the hidden states are written to `slopes_N_H`, None for none."""
    weight_V_H = head.weight
    dtype = torch.promote_types(weight_V_H.dtype, torch.float32)
    size = max(1, CHUNK_BYTES // (len(weight_V_H) * dtype.itemsize))
    logprobs_N = hidden_N_H.new_empty(len(hidden_N_H), dtype=dtype)
    with torch.no_grad():
        for start in range(0, len(hidden_N_H), size):
            part = slice(start, start + size)
            tokens_C_1, temperature_C_1 = tokens_N[part, None], temperature_N[part, None].to(dtype)
            logits_C_V = head(hidden_N_H[part]).to(dtype).div_(temperature_C_1)
            logits_C_V.sub_(logits_C_V.amax(1, keepdim=True))
            chosen_C_1 = logits_C_V.gather(1, tokens_C_1)
            sum_C_1 = logits_C_V.exp_().sum(1, keepdim=True)
            logprobs_N[part] = (chosen_C_1 - sum_C_1.log()).squeeze(1)
            if slopes_N_H is not None:
                pull_C_V = logits_C_V.div_(sum_C_1 * -temperature_C_1)  # (one at the token - p) / temperature
                pull_C_V.scatter_add_(1, tokens_C_1, temperature_C_1.reciprocal())
                slopes_N_H[part] = pull_C_V.to(weight_V_H.dtype) @ weight_V_H
    return logprobs_N

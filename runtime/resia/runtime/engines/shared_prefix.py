"""Attention over a prefix that every row of a batch shares, kept once instead of once a row.

A group of rollouts differs only in its last tokens, so keys and values of the common prefix are stored with batch
size 1 and all queries of the batch meet them in one matrix product; each row's own keys and values stay in an
ordinary cache. One softmax runs over both, so the result is that of ordinary attention up to rounding.
Knows nothing of sampling, adapters or prompts. Plugs into transformers as the attention called `NAME`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache

NAME = "resia_shared_prefix"
Prefix = list[tuple[torch.Tensor, torch.Tensor]]  # keys_K_P_D and values_K_P_D, one pair a layer


def attend(
    module: Any,
    query_B_H_Q_D: torch.Tensor,
    key_B_K_S_D: torch.Tensor,
    value_B_K_S_D: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    prefix: Prefix | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention, (B, Q, H, D). `attention_mask` is additive, (B, 1, Q, S), over the row's own keys only.

    Without a prefix and a mask it is causal with Q = S; without a mask Q is 1. H = K * G, head h reads key head h // G.
    """
    B, H, Q, D = query_B_H_Q_D.shape
    K = key_B_K_S_D.shape[1]
    if prefix is None and attention_mask is None and Q > 1:
        causal = torch.nn.functional.scaled_dot_product_attention(
            query_B_H_Q_D, key_B_K_S_D, value_B_K_S_D, is_causal=True, scale=scaling, enable_gqa=True
        )
        return causal.transpose(1, 2), None
    query_B_K_GQ_D = query_B_H_Q_D.reshape(B, K, -1, D) * scaling
    scores = query_B_K_GQ_D @ key_B_K_S_D.transpose(2, 3)
    if attention_mask is not None:
        scores = scores.view(B, K, H // K, Q, -1).add_(attention_mask.unsqueeze(1)).view(B, K, H // K * Q, -1)
    if prefix is None:
        out_B_K_GQ_D = _softmax(scores) @ value_B_K_S_D
    else:
        keys_K_P_D, values_K_P_D = prefix[module.layer_idx]
        P = keys_K_P_D.shape[1]
        shared = _by_row(_by_head(query_B_K_GQ_D) @ keys_K_P_D.transpose(1, 2), B)
        weights = _softmax(torch.cat((shared, scores), dim=-1))
        out_B_K_GQ_D = _by_row(_by_head(weights[..., :P]) @ values_K_P_D, B) + weights[..., P:] @ value_B_K_S_D
    return out_B_K_GQ_D.reshape(B, H, Q, D).transpose(1, 2), None


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _by_head(rows_B_K_N_X: torch.Tensor) -> torch.Tensor:
    """(B, K, N, X) -> (K, B * N, X): every row's queries in one product with the shared keys."""
    B, K, N, X = rows_B_K_N_X.shape
    return rows_B_K_N_X.transpose(0, 1).reshape(K, B * N, X)


def _by_row(heads_K_BN_X: torch.Tensor, B: int) -> torch.Tensor:
    K, BN, X = heads_K_BN_X.shape
    return heads_K_BN_X.view(K, B, BN // B, X).transpose(0, 1)


def prefill_prefix(model: Any, tokens: list[int]) -> Prefix:
    """Keys and values of `tokens` in every layer, from one forward pass with batch size 1."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys[0].contiguous(), layer.values[0].contiguous()) for layer in cache.layers]


def common_prefix(rows: list[list[int]]) -> int:
    """Length of the longest common prefix that leaves every row at least one token of its own."""
    low, high = min(rows), max(rows)  # lexicographic extremes: what they share, all share
    limit = min(len(row) for row in rows) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


AttentionInterface.register(NAME, attend)

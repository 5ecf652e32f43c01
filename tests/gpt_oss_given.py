"""A tiny gpt-oss with random weights: sliding and full attention with sinks, a router, experts."""

from __future__ import annotations

from typing import Any

from trainer_given import CONTEXT, VOCABULARY

TINY = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": VOCABULARY, "hidden_size": 64,
    "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8,
    "max_position_embeddings": CONTEXT, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
}  # fmt: skip


def tiny_config(layers: int = 2, **changes: Any) -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(num_hidden_layers=layers, **{**TINY, **changes})


def tiny_gpt_oss(layers: int = 2, **changes: Any) -> Any:
    import torch
    from transformers import GptOssForCausalLM

    torch.manual_seed(0)
    return GptOssForCausalLM(tiny_config(layers, **changes)).eval()

"""A random Llama with SmolLM2's proportions at a sixteenth of its size, so that a whole comparison takes minutes.

8 layers, hidden size 256, 4 heads of 64 on 2 key heads, 8192 tokens; 8 million parameters, and of the work the output
layer's share is that of the 135M model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from resia.runtime.engines.tiny import build_tiny_model


def build(folder: Path) -> Path:
    """Write the model as a transformers folder, with the tiny model's tokenizer; returns `folder`."""
    build_tiny_model(folder)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder

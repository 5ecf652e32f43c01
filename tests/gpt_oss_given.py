"""A tiny gpt-oss with random weights: sliding and full attention with sinks, a router, experts."""

from __future__ import annotations

from pathlib import Path
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


# -- one that speaks harmony -------------------------------------------------------------------------------------------

MARKS = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
         "<|message|>", "<|call|>")  # fmt: skip
WORDS = ("assistant", "analysis", "final")  # one token each, as in gpt-oss's own vocabulary
CERTAIN, LEAD = 20.0, 1.0
# The format of OpenAI's own template: identity, day and effort in a system message, the instruction in a developer's.
TEMPLATE = (
    "{%- macro about() -%}{{ 'You are a model.\nKnowledge cutoff: 2024-06\nCurrent date: ' }}"
    "{{- strftime_now('%Y-%m-%d') + '\n\nReasoning: ' + (reasoning_effort or 'medium') }}"
    "{{- '\n\n# Valid channels: analysis, final.' }}{%- endmacro -%}"
    "{{- '<|start|>system<|message|>' }}{{ about() }}{{ '<|end|>' }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|start|>developer<|message|># Instructions\n\n' + m.content + '<|end|>' }}"
    "{% elif m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


def harmony_model(folder: Path) -> Path:
    """A tiny gpt-oss of random weights whose next token depends mostly on the last one: it opens a channel, analysis or
    final, says `pick=` and a digit there, and returns or begins another message. Greedy, it answers 5 at once."""
    import torch

    tokenizer = _tokenizer()
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in (*MARKS, *WORDS, *"pick=0123456789")}
    model = tiny_gpt_oss(
        vocab_size=len(tokenizer), sliding_window=8, max_position_embeddings=1024, initializer_range=0.05,
        bos_token_id=ids["<|startoftext|>"], eos_token_id=ids["<|return|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    digits = "0123456789"
    follows = [("<|start|>", "assistant", 0.0), ("assistant", "<|channel|>", 0.0), ("<|channel|>", "final", LEAD)]
    follows += [("<|channel|>", "analysis", 0.0), ("final", "<|message|>", 0.0), ("analysis", "<|message|>", 0.0)]
    follows += [(a, b, 0.0) for a, b in zip(("<|message|>", *"pick"), "pick=", strict=True)]
    follows += [("=", digit, 0.5 * (digit == "5")) for digit in digits]
    follows += [(digit, "<|return|>", LEAD) for digit in digits] + [(digit, "<|end|>", 0.0) for digit in digits]
    follows += [("<|end|>", "<|start|>", 0.0)]
    axes = {text: axis for axis, text in enumerate(dict.fromkeys(before for before, _, _ in follows))}
    with torch.no_grad():
        embedding, output = model.model.embed_tokens.weight, model.lm_head.weight
        width = embedding.shape[1]
        output[:, : len(axes)] = 0.0
        for before, after, lead in follows:
            output[ids[after], axes[before]] = (CERTAIN + lead) / width**0.5
        for text, axis in axes.items():
            embedding[ids[text]] = 4.0 * torch.eye(width)[axis]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """One token a byte, the marks of harmony, and its words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    inner.add_tokens([AddedToken(word, special=False) for word in WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=MARKS[0], eos_token=MARKS[2], pad_token=MARKS[1],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip

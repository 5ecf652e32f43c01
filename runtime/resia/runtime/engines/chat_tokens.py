"""Chats as token ids and token ids as text, by the model's own template and tokenizer.

Whatever samples, prompts and stops are these, so that an engine on a server and the embedded one, and the trainer after
both, speak of the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from resia.agents.ports import Sampling
from resia.events import Message

from . import harmony
from .stopping import Stopper

# Some templates write today's date, gpt-oss's among them. What a clock says must reach no token, so the day is fixed.
FIXED_DAY = "{%- macro strftime_now(format) -%}2025-08-05{%- endmacro -%}"


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of a model folder, with its chat template."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        tokenizer.chat_template = f"{FIXED_DAY}{template}"
    return tokenizer


def load_chat(model_dir: Path, thinking_tokens: int = 0, effort: str = "") -> ChatTokens:
    """The tokens of the model in `model_dir`, whose weights are not read."""
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(model_dir)
    if (model_dir / "generation_config.json").is_file():
        declared = GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    else:
        declared = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model_dir, local_files_only=True))
    return ChatTokens(tokenizer, end_tokens(tokenizer, declared), thinking_tokens, effort)


def end_tokens(tokenizer: Any, generation: Any) -> frozenset[int]:
    """The tokens that end a completion, as the tokenizer and the model's generation settings declare them."""
    declared = generation.eos_token_id
    return frozenset({tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None})


class ChatTokens:
    """`ends` are the tokens that end a completion. A model that writes harmony has `thinking_tokens` beside what the
    harness gives its answer, and is told to think with `effort`, if any."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], thinking_tokens: int = 0, effort: str = "") -> None:
        self._harmony = harmony.speaks(tokenizer.get_vocab())
        marks = tokenizer.convert_tokens_to_ids(list(harmony.STOPS)) if self._harmony else ()
        self._tokenizer, self.ends = tokenizer, ends.union(marks)
        self._thinking = thinking_tokens if self._harmony else 0
        self._extra = {"reasoning_effort": effort} if effort else {}

    def with_thought(self, sampling: Sampling) -> Sampling:
        """With the room that a model which thinks first has beside what the harness gives its answer."""
        return msgspec.structs.replace(sampling, max_new_tokens=sampling.max_new_tokens + self._thinking)

    def encode(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of each prompt in the model's chat format, open for the assistant's turn."""
        known: dict[tuple[Message, ...], list[int]] = {}
        for prompt in map(tuple, prompts):
            if prompt not in known:
                chat = [{"role": message.role, "content": message.content} for message in prompt]
                known[prompt] = self._tokenizer.apply_chat_template(
                    chat, add_generation_prompt=True, return_dict=False, **self._extra
                )
        return [known[tuple(prompt)] for prompt in prompts]

    def on_server(self, sampling: Sampling) -> Sampling:
        """What a server is told: strings that stop an answer would stop a thought too, where there is one."""
        return msgspec.structs.replace(sampling, stop=()) if self._harmony else sampling

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text` as it stands, special tokens by their names."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def stopper(self, stop: tuple[str, ...]) -> harmony.Stops:
        """Says where a completion ends and what its text is."""

        def decode(tokens: list[int], skip_special: bool) -> str:
            text: str = self._tokenizer.decode(
                tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
            return text

        plain = Stopper(decode, self.ends, stop)
        if not self._harmony:
            return plain
        ids = dict(zip(harmony.MARKS, self._tokenizer.convert_tokens_to_ids(list(harmony.MARKS)), strict=True))
        return harmony.FinalStopper(ids, self.ends, plain, lambda tokens: decode(tokens, False))

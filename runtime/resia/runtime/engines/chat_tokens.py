"""Chats as token ids and token ids as text, by the model's own template and tokenizer.

Whatever samples, prompts and stops are these, so that an engine on a server and the embedded one, and the trainer after
both, speak of the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resia.events import Message

from .stopping import Stopper


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of a model folder, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)


def load_chat(model_dir: Path) -> ChatTokens:
    """The tokens of the model in `model_dir`, whose weights are not read."""
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(model_dir)
    if (model_dir / "generation_config.json").is_file():
        declared = GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    else:
        declared = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model_dir, local_files_only=True))
    return ChatTokens(tokenizer, end_tokens(tokenizer, declared))


def end_tokens(tokenizer: Any, generation: Any) -> frozenset[int]:
    """The tokens that end a completion, as the tokenizer and the model's generation settings declare them."""
    declared = generation.eos_token_id
    return frozenset({tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None})


class ChatTokens:
    """`ends` are the tokens that end a completion."""

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        self._tokenizer, self.ends = tokenizer, ends

    def encode(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of each prompt in the model's chat format, open for the assistant's turn."""
        known: dict[tuple[Message, ...], list[int]] = {}
        for prompt in map(tuple, prompts):
            if prompt not in known:
                chat = [{"role": message.role, "content": message.content} for message in prompt]
                known[prompt] = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return [known[tuple(prompt)] for prompt in prompts]

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text` as it stands, special tokens by their names."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def stopper(self, stop: tuple[str, ...]) -> Stopper:
        """Says where a completion ends and what its text is."""

        def decode(tokens: list[int], skip_special: bool) -> str:
            text: str = self._tokenizer.decode(
                tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
            return text

        return Stopper(decode, self.ends, stop)

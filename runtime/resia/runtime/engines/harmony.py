"""Harmony, the format in which gpt-oss writes: what of a completion is the answer, and what ends it.

A completion is a row of messages, `<|channel|>NAME<|message|>TEXT` ended by `<|end|>` and begun anew by
`<|start|>assistant`. Channel `analysis` is thought, `commentary` calls tools, `final` is for the reader; `<|return|>`
ends it all, `<|call|>` asks for a tool. Rendering is the model's own chat template; an earlier answer stands in it as
its final message alone. Pure; knows no model.
Source: OpenAI's "harmony response format", cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

CHANNEL, MESSAGE, START, END, RETURN, CALL = (
    f"<|{name}|>" for name in ("channel", "message", "start", "end", "return", "call")
)
MARKS = (CHANNEL, MESSAGE, START, END, RETURN, CALL)
STOPS = (RETURN, CALL)  # END ends a message, and the model may go on with the next
FINAL = "final"


class Stops(Protocol):
    """`sampling.Stopper`, or what stands in for it."""

    def stops(self, tokens: list[int]) -> bool: ...

    def text(self, tokens: list[int]) -> str: ...


class FinalStopper:
    """Stop strings and text of the final message alone; whatever stands in thought ends nothing and is no answer.

    `ids` are the marks' in the vocabulary, `ends` the tokens that end a completion beside them, `within` the stops of a
    message's own tokens, `decode` gives their text.
    """

    def __init__(
        self, ids: Mapping[str, int], ends: Collection[int], within: Stops, decode: Callable[[list[int]], str]
    ) -> None:
        self._ids, self._within, self._decode = dict(ids), within, decode
        self._ends = {*ends, *(ids[mark] for mark in STOPS)}
        self._over = {ids[mark] for mark in (END, RETURN, CALL, START)}

    def stops(self, tokens: list[int]) -> bool:
        """Whether the last of `tokens` ended the completion."""
        if tokens[-1] in self._ends:
            return True
        if tokens[-1] in self._ids.values():
            return False
        body = self._final(tokens)
        return bool(body) and self._within.stops(body)

    def text(self, tokens: list[int]) -> str:
        """The final message, up to the first stop string; empty where there is none."""
        return self._within.text(self._final(tokens))

    def _final(self, tokens: Sequence[int]) -> list[int]:
        """Tokens of the last message of channel final so far."""
        channel, message = self._ids[CHANNEL], self._ids[MESSAGE]
        for at in (n for n in range(len(tokens) - 1, -1, -1) if tokens[n] == channel):
            rest = list(tokens[at + 1 :])
            if message in rest and self._decode(rest[: (mark := rest.index(message))]).split()[:1] == [FINAL]:
                body = rest[mark + 1 :]
                return body[: next((n for n, token in enumerate(body) if token in self._over), None)]
        return []


def speaks(tokens: Collection[str]) -> bool:
    """Whether a tokenizer with these special tokens is of a model that writes harmony."""
    return all(mark in tokens for mark in MARKS)


def is_raw(text: str) -> bool:
    """Whether `text` is harmony that nobody has parsed, as a server without the format passes it on."""
    return CHANNEL in text and MESSAGE in text


def final_text(text: str) -> str | None:
    """The last message of channel `final` in a raw completion, as far as it was written; None where there is none."""
    found = None
    for piece in text.split(CHANNEL)[1:]:
        header, mark, body = piece.partition(MESSAGE)
        # A header may go on with a recipient or a type: `commentary to=functions.f <|constrain|>json`.
        if mark and header.split()[:1] == [FINAL]:
            found = body[: min((at for end in (END, RETURN, CALL, START) if (at := body.find(end)) >= 0), default=None)]
    return found

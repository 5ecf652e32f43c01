"""Harmony, the format in which gpt-oss writes: what of a completion is the answer, and what ends it.

A completion is a row of messages, `<|channel|>NAME<|message|>TEXT` ended by `<|end|>` and begun anew by
`<|start|>assistant`. Channel `analysis` is thought, `commentary` calls tools, `final` is for the reader; `<|return|>`
ends it all, `<|call|>` asks for a tool. Rendering is the model's own chat template. Pure; knows no model.
Source: OpenAI's "harmony response format", cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

from collections.abc import Collection

CHANNEL, MESSAGE, START, END, RETURN, CALL = (
    f"<|{name}|>" for name in ("channel", "message", "start", "end", "return", "call")
)
MARKS = (CHANNEL, MESSAGE, START, END, RETURN, CALL)
STOPS = (RETURN, CALL)  # END ends a message, and the model may go on with the next
FINAL = "final"


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

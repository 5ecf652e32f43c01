"""Where a completion ends, and what its text is. Knows a tokenizer's `decode` and nothing of models or torch."""

from __future__ import annotations

from collections.abc import Callable


class Stopper:
    """Says when a row is finished and what its text is. `decode(tokens, skip_special)` gives text."""

    def __init__(
        self, decode: Callable[[list[int], bool], str], end_tokens: frozenset[int], stop: tuple[str, ...]
    ) -> None:
        self._decode = decode
        self._end_tokens = end_tokens
        self._stop = stop
        # A token holds at least one byte, so no occurrence spans more tokens; one more shields the first from a
        # decoder that trims leading space.
        self._tail = 1 + max((len(text.encode()) for text in stop), default=0)

    def stops(self, tokens: list[int]) -> bool:
        """Whether the last of `tokens` ended the completion."""
        if tokens[-1] in self._end_tokens:
            return True
        if not self._stop:
            return False
        tail = self._decode(tokens[-self._tail :], False)
        return any(text in tail for text in self._stop)

    def text(self, tokens: list[int]) -> str:
        """Decoded completion up to the first stop string, without special tokens."""
        whole = self._decode(tokens, True)
        return whole[: min((at for text in self._stop if (at := whole.find(text)) >= 0), default=len(whole))]

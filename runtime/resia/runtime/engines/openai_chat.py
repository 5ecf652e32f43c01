"""A model behind an OpenAI-compatible endpoint that proposes: one request a reply.

Implements `resia.agents.ports.ChatModel` over `chat_line`. Knows nothing of harnesses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from resia.agents.ports import ChatReply
from resia.events import LlmSettings, Message

from .chat_line import ChatLine, Clocks

TOKEN_BYTES = 3  # for an endpoint that does not count


class OpenAiChat:
    """Asks the endpoint of `settings` with `key` (empty: none). `sleep` takes seconds; `clock` is monotonic, `now`
    epoch seconds."""

    def __init__(
        self,
        settings: LlmSettings,
        key: str,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._line = ChatLine(settings, settings.model, key, Clocks(sleep, clock, now))

    def complete(self, messages: Sequence[Message]) -> ChatReply:
        """See `ChatModel.complete`."""
        body = {
            "model": self._settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": self._settings.temperature,
            self._settings.token_field: self._settings.max_tokens,
        }
        reply = self._line.ask(body)
        asked_bytes = len(json.dumps(body).encode())
        usage = reply.usage or (asked_bytes // TOKEN_BYTES, len(reply.text.encode()) // TOKEN_BYTES)
        return ChatReply(reply.text, reply.finish, reply.model, *usage, reply.failures)

"""The engine behind an OpenAI-compatible endpoint: rollouts as text, with the tokens that it counts.

An outside party: the same request need not give the same answer, so what it said is recorded and never asked for
again. What an endpoint does not know is not sent (`EndpointSettings`), and made up for here where that is possible:
stop strings cut the text on this side too. Collaborators: `chat_line` (HTTP), `rate_limit`, `harmony`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec

from resia.agents.ports import NO_ROOM, REFUSED, Completion, Sampling
from resia.events import EndpointSettings, EngineSettings, Manifest, Message, Usage
from resia.events.errors import ModelError

from . import harmony
from .chat_line import ChatLine, Clocks, Pace, Refused, Reply
from .rate_limit import RateLimit

TOKEN_BYTES = 3  # for an endpoint that does not count
SEED_BITS = 31  # what every endpoint with seeds takes
HELD = 4096  # completions kept from batches that failed
_FILTERED = "content_filter"
_NO_ROOM = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_NO_ROOM_SAID = re.compile(r"context (length|window|size)|prompt is too long", re.IGNORECASE)
_NO_FORMAT_SAID = re.compile(r"response_format|json_schema|structured output", re.IGNORECASE)
_WEAKER = {"json_schema": "json_object", "json_object": "none"}


class _Row(NamedTuple):
    """One completion to ask for."""

    prompt: tuple[Message, ...]
    sampling: Sampling
    seed: int


class OpenAiEngine:
    """Implements `resia.agents.ports.Engine` over the endpoint of `settings`, whose model is `engine.model`."""

    def __init__(
        self, engine: EngineSettings, settings: EndpointSettings, key: str, digest: str, clocks: Clocks | None = None
    ) -> None:
        """`digest` is what the run's first event has in place of that of weights."""
        clocks = clocks or Clocks()
        self._engine, self._model, self._settings = engine, engine.model, settings
        self._line = ChatLine(settings, engine.model, key, clocks)
        limits = settings.requests_per_minute, settings.tokens_per_minute
        self._limit = RateLimit(*limits, clocks.sleep, clocks.clock)
        self._format: str = settings.response_format
        self._held: dict[_Row, Completion] = {}
        self._lock, self._last = threading.Lock(), threading.local()
        self._manifest = Manifest(
            engine.model, digest, "", 0, "", version("resia"), endpoint=settings.base_url.rstrip("/")
        )

    @property
    def manifest(self) -> Manifest:
        """What the endpoint said of itself in the last batch of this thread."""
        model, fingerprint = getattr(self._last, "said", ("", ""))
        return msgspec.structs.replace(self._manifest, model=model or self._model, fingerprint=fingerprint)

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See `Engine.generate`. A batch of which one request fails keeps what the others gave for the next try."""
        if adapter is not None:
            raise ModelError(f"model {self._model} is behind an endpoint, which takes no adapter")
        rows = [_Row(tuple(prompt), sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        said: set[tuple[str, str]] = set()

        def one(client: httpx2.Client, row: _Row) -> Completion:
            reply, completion = self._asked(client, row)
            with self._lock:
                said.add((reply.model, reply.fingerprint) if reply else ("", ""))
                if on_tokens is not None:
                    on_tokens(completion.completion_tokens)
            return completion

        with self._line.client() as client, ThreadPoolExecutor(self._settings.concurrency) as pool:
            asked = {row: pool.submit(one, client, row) for row in dict.fromkeys(rows) if row not in self._held}
            _, waiting = wait(asked.values(), return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
        self._last.said = tuple(",".join(sorted({s[n] for s in said if s[n]})) for n in range(2))
        return self._gathered(rows, asked)

    def _gathered(self, rows: Sequence[_Row], asked: dict[_Row, Future[Completion]]) -> list[Completion]:
        """The completions in order; where one is missing, the others are held and its failure is raised."""
        done = {row: future for row, future in asked.items() if not future.cancelled()}
        failed = [cause for future in done.values() if (cause := future.exception()) is not None]
        given = {row: future.result() for row, future in done.items() if future.exception() is None}
        with self._lock:
            given = {**{row: self._held[row] for row in rows if row in self._held}, **given}
            if failed:
                self._held = {**self._held, **given} if len(self._held) < HELD else given
                raise failed[0]
            for row in given:
                self._held.pop(row, None)
        return [given[row] for row in rows]

    def _asked(self, client: httpx2.Client, row: _Row) -> tuple[Reply | None, Completion]:
        """(the reply, what it comes to); None where the endpoint refused this prompt, which is a completion too."""
        while True:
            format_ = self._format
            try:
                return self._once(client, row, format_)
            except Refused as cause:
                if not (row.sampling.schema and format_ in _WEAKER and _no_format(cause)):
                    return None, _withheld(cause, row)
                self._format = _WEAKER[format_]  # the form is asked for in words as well

    def _once(self, client: httpx2.Client, row: _Row, format_: str) -> tuple[Reply, Completion]:
        room = _prompt_tokens(row) + self._most(row.sampling)
        pace = Pace(lambda: self._limit.take(room), self._limit.hold)
        reply = self._line.ask(self._body(row, format_), pace, client)
        completion = _completion(reply, row)
        self._limit.settle(room, completion.prompt_tokens + completion.completion_tokens)
        return reply, completion

    def _most(self, sampling: Sampling) -> int:
        """New tokens, those of thought that the endpoint counts too."""
        return sampling.max_new_tokens + self._engine.thinking_tokens

    def _body(self, row: _Row, format_: str) -> dict[str, Any]:
        """The request, with nothing in it that the endpoint does not know."""
        settings, sampling = self._settings, row.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _messages(row),
            settings.token_field: self._most(sampling),
            **({"reasoning_effort": self._engine.effort} if self._engine.effort else {}),
            **settings.extra,
        }
        if settings.temperature:
            body["temperature"] = min(sampling.temperature, settings.max_temperature)
        stop = [text for text in sampling.stop if settings.blank_stops or text.strip()][: settings.stops]
        if stop:
            body["stop"] = stop
        if settings.seed_field != "none":
            body[settings.seed_field] = row.seed % (1 << SEED_BITS)
        if settings.logprobs != "none":
            body["logprobs"] = True
        if settings.logprobs == "ids":
            body["return_token_ids"] = True
        if sampling.schema and format_ == "json_schema":
            shape = {"name": "answer", "strict": True, "schema": json.loads(sampling.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        elif sampling.schema and format_ == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body


def _no_format(cause: Refused) -> bool:
    return cause.status in (400, 422) and bool(_NO_FORMAT_SAID.search(f"{cause.code} {cause}"))


def _messages(row: _Row) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in row.prompt]


def _prompt_tokens(row: _Row) -> int:
    """An estimate, by bytes."""
    return len(json.dumps(_messages(row), ensure_ascii=False).encode(errors="replace")) // TOKEN_BYTES


def _withheld(cause: Refused, row: _Row) -> Completion:
    """A prompt that is too long or that the endpoint's filter stopped: the agent's matter. Anything else is raised."""
    usage = Usage(_prompt_tokens(row), 0, estimated=True)
    if cause.status in (400, 413, 422) and (cause.code in _NO_ROOM or _NO_ROOM_SAID.search(str(cause))):
        return Completion((), (), (), "", NO_ROOM, usage)
    if cause.status in (400, 403, 422) and _FILTERED in cause.code:
        return Completion((), (), (), "", REFUSED, usage)
    raise cause


def _completion(reply: Reply, row: _Row) -> Completion:
    """A reply as the harness sees it: the final message, cut at the first stop string."""
    whole = reply.text or reply.refusal
    if harmony.is_raw(whole):
        whole = harmony.final_text(whole) or ""
    at = min((at for text in row.sampling.stop if (at := whole.find(text)) >= 0), default=None)
    refused = reply.finish == _FILTERED or (bool(reply.refusal) and not reply.text)
    finish = REFUSED if refused else "length" if reply.finish == "length" and at is None else "stop"
    counted = reply.usage or (_prompt_tokens(row), len(whole.encode()) // TOKEN_BYTES)
    usage = Usage(*counted, estimated=reply.usage is None)
    return Completion(reply.prompt_ids, reply.token_ids, reply.logprobs, whole[:at], finish, usage)

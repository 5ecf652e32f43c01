"""A model behind an OpenAI-compatible endpoint: one request a reply, every failure named, the key in no text.

What asking again can mend (too many requests, a server in trouble, half a reply, silence) is asked again after a pause
that grows, or that the endpoint names. Everything that comes from outside is bounded: seconds, bytes, pauses.
Implements `resia.agents.ports.ChatModel`. Knows nothing of harnesses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from resia.agents.ports import ChatReply
from resia.events import LlmSettings, Message
from resia.events.errors import EndpointRefused, ModelError

PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
MAX_REPLY_BYTES = 8 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_WAIT_S = 300.0  # an endpoint that asks for more is out of order for this run
SECRET_CHARS = 8  # a shorter key is a word such as "none", which may stand in a text
QUOTED_CHARS = 300
TOKEN_BYTES = 3  # for an endpoint that does not count
_MEANING = {
    401: "the key is not taken: check the environment variable that llm.key_env names",
    403: "the key may not do this: check llm.model and the account",
    404: "there is no such model or path: check llm.model and llm.base_url",
}
Tokens = Annotated[int, Field(ge=0, le=10**9)]


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class _Body(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str = ""
    usage: _Usage | None = None


class _Passing(Exception):
    """A failure that may pass; `wait_s` is what the endpoint asked for, None where it said nothing."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


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
        self._settings, self._key = settings, key
        self._sleep, self._clock, self._now = sleep, clock, now
        self._url = settings.base_url.rstrip("/") + "/chat/completions"

    def complete(self, messages: Sequence[Message]) -> ChatReply:
        """See `ChatModel.complete`."""
        failures: list[str] = []
        pause = FIRST_PAUSE_S
        while True:
            try:
                with self._client() as client:  # a connection is of no use minutes later
                    return self._asked(client, messages, tuple(failures))
            except _Passing as cause:
                failures.append(str(cause))
                wait = cause.wait_s if cause.wait_s is not None else pause
            if len(failures) > self._settings.retries or wait > LONGEST_WAIT_S:
                asked = f"after {len(failures)} request{'s' if len(failures) > 1 else ''}"
                raise ModelError(f"{self._where} gave no reply {asked}: {failures[-1]}")
            self._sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _client(self) -> httpx2.Client:
        """A redirect would carry the prompt, and perhaps the key, to another place: none is followed."""
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        return httpx2.Client(headers=headers, timeout=self._settings.timeout_s, follow_redirects=False)

    @property
    def _where(self) -> str:
        return f"model {self._settings.model} at {self._settings.base_url}"

    def _asked(self, client: httpx2.Client, messages: Sequence[Message], failures: tuple[str, ...]) -> ChatReply:
        body = self._body(messages)
        try:
            with client.stream("POST", self._url, content=body) as response:
                data = self._read(response)
        except httpx2.TimeoutException:
            raise _Passing(f"no answer within {self._settings.timeout_s:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as cause:
            raise _Passing(self._clean(f"the connection failed: {type(cause).__name__}: {cause}")) from None
        except httpx2.InvalidURL as cause:
            raise EndpointRefused(f"llm.base_url cannot be asked: {cause}") from None
        if response.status_code != httpx2.codes.OK:
            raise self._refusal(response, data)
        return self._reply(data, len(body), failures)

    def _body(self, messages: Sequence[Message]) -> bytes:
        settings = self._settings
        asked: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": settings.temperature,
            settings.token_field: settings.max_tokens,
        }
        return json.dumps(asked).encode()

    def _read(self, response: httpx2.Response) -> bytes:
        """The body, within the time of one request and the bytes of one reply: a timeout of the client's own counts
        from byte to byte."""
        deadline, data = self._clock() + self._settings.timeout_s, bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_REPLY_BYTES:
                raise _Passing(f"a reply of more than {MAX_REPLY_BYTES >> 20} MB")
            if self._clock() > deadline:
                raise _Passing(f"no whole answer within {self._settings.timeout_s:g} s")
        return bytes(data)

    def _refusal(self, response: httpx2.Response, data: bytes) -> Exception:
        status = response.status_code
        said = self._clean(_message_of(data))
        if status in PASSING:
            return _Passing(f"HTTP {status}: {said}", self._asked_wait(response.headers.get("retry-after", "")))
        meaning = _MEANING.get(status, "the request is not taken")
        return EndpointRefused(f"{self._where} answered HTTP {status}: {meaning} ({said})")

    def _asked_wait(self, value: str) -> float | None:
        """Seconds of a Retry-After header, which holds a number or a date; None where it holds neither."""
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            return max(parsedate_to_datetime(value).timestamp() - self._now(), 0.0)
        except (ValueError, OverflowError):
            return None

    def _reply(self, data: bytes, asked_bytes: int, failures: tuple[str, ...]) -> ChatReply:
        try:
            body = _Body.model_validate_json(data)
        except ValidationError as cause:
            first = cause.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the reply"
            raise _Passing(f"half a reply, or none of a chat completion: {where}: {first['msg']}") from None
        text = self._clean(body.choices[0].message.content or "", whole=True)
        usage = body.usage or _Usage(
            prompt_tokens=asked_bytes // TOKEN_BYTES, completion_tokens=len(text.encode()) // TOKEN_BYTES
        )
        return ChatReply(
            text,
            body.choices[0].finish_reason or "",
            self._clean(body.model),
            usage.prompt_tokens,
            usage.completion_tokens,
            failures,
        )

    def _clean(self, text: str, whole: bool = False) -> str:
        """`text` without the key, which an endpoint may repeat, fit to be stored; a short line unless `whole`."""
        if len(self._key) >= SECRET_CHARS:
            text = text.replace(self._key, "[key]")
        text = text.encode(errors="replace").decode()
        return text if whole else " ".join(text.split())[:QUOTED_CHARS]


def _message_of(data: bytes) -> str:
    """What an error says, in the form of this interface or in none."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        error = found["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return text

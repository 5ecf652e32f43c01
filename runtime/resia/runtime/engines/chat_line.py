"""The line to an OpenAI-compatible endpoint: a body out, a completion back, every failure named, the key in no text.

What asking again can mend (too many requests, a server in trouble, half a reply, silence) is asked again after a pause
that grows, or that the endpoint names. Everything that comes from outside is bounded: seconds, bytes, pauses.
Knows nothing of proposers, rollouts or harnesses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, NamedTuple

import httpx2
from pydantic import BaseModel, Field, ValidationError

from resia.events import EndpointSettings, LlmSettings
from resia.events.errors import EndpointRefused, KeyRefused, ModelError

PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
BARRED = frozenset({401, 402, 403})
CUT = frozenset({"length", "max_tokens", "model_length"})  # names of one thing, here "length"
BROKEN_OFF = frozenset({"error", "abort", "insufficient_system_resource"})  # what is there was not ended by the model
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})  # said with 429, and no pause mends it
MAX_REPLY_BYTES = 8 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_WAIT_S = 300.0  # an endpoint that asks for more is out of order for this run
SECRET_CHARS = 8  # a shorter key is a word such as "none", which may stand in a text
QUOTED_CHARS = 300
Count = Annotated[int, Field(ge=0, le=10**9)]


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Token(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[Count] | None = None


class _Usage(BaseModel):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class _Body(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str = ""
    system_fingerprint: str | None = None
    usage: _Usage | None = None
    prompt_token_ids: list[Count] | None = None


class Reply(NamedTuple):
    """One completion. `finish` is "length" where it was cut off; `usage` is (prompt, completion) tokens where the
    endpoint counts them; `refusal` what it said instead of an answer; ids and log-probabilities (natural log) where it
    gives them. `failures` names each request that had to be sent again."""

    text: str
    refusal: str
    finish: str
    model: str
    fingerprint: str
    usage: tuple[int, int] | None
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    failures: tuple[str, ...]


class Refused(EndpointRefused):
    """`status` and the endpoint's own `code` for why, empty where it gives none."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Barred(Refused, KeyRefused):
    """A refusal of the key or the account."""


class _Passing(Exception):
    """A failure that may pass; `wait_s` is what the endpoint asked for, None where it said nothing."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Clocks(NamedTuple):
    """`sleep` takes seconds; `clock` is monotonic, `now` epoch seconds."""

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time


class Pace(NamedTuple):
    """Told before each request, and of each pause that the endpoint asked for, in seconds."""

    before: Callable[[], None] = lambda: None
    held: Callable[[float], None] = lambda _seconds: None


class ChatLine:
    """Asks `model` at the endpoint of `settings` with `key` (empty: none). May be used by several threads at once."""

    def __init__(
        self, settings: LlmSettings | EndpointSettings, model: str, key: str, clocks: Clocks | None = None
    ) -> None:
        self._settings, self._model, self._key = settings, model, key
        self._clocks = clocks or Clocks()
        self._section = "llm" if isinstance(settings, LlmSettings) else "endpoint"
        self._model_setting = "llm.model" if isinstance(settings, LlmSettings) else "engine.model"
        self._url = settings.base_url.rstrip("/") + "/chat/completions"

    def client(self) -> httpx2.Client:
        """A redirect would carry the prompt, and perhaps the key, to another place: none is followed."""
        headers = {"Content-Type": "application/json"}
        if self._key and isinstance(self._settings, EndpointSettings) and self._settings.key_header == "api-key":
            headers["api-key"] = self._key
        elif self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx2.Client(headers=headers, timeout=self._settings.timeout_s, follow_redirects=False)

    def ask(self, body: Mapping[str, Any], pace: Pace | None = None, client: httpx2.Client | None = None) -> Reply:
        """The reply to `body`. Raises Refused where asking again would change nothing, and ModelError where the
        endpoint was out of order for as long as it was waited for."""
        data, failures, pause, pace = json.dumps(body).encode(), list[str](), FIRST_PAUSE_S, pace or Pace()
        while True:
            pace.before()
            try:
                if client is not None:
                    return self._asked(client, data, tuple(failures))
                with self.client() as own:  # a connection is of no use minutes later
                    return self._asked(own, data, tuple(failures))
            except _Passing as cause:
                failures.append(str(cause))
                at_once = cause.wait_s == 0 and len(failures) > 1  # was tried
                wait = pause if cause.wait_s is None or at_once else cause.wait_s
                if cause.wait_s is not None:
                    pace.held(min(cause.wait_s, LONGEST_WAIT_S))
            if len(failures) > self._settings.retries or wait > LONGEST_WAIT_S:
                asked = f"after {len(failures)} request{'s' if len(failures) > 1 else ''}"
                raise ModelError(f"{self._where} gave no reply {asked}: {failures[-1]}")
            self._clocks.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    @property
    def _where(self) -> str:
        return f"model {self._model} at {self._settings.base_url}"

    def _asked(self, client: httpx2.Client, body: bytes, failures: tuple[str, ...]) -> Reply:
        try:
            with client.stream("POST", self._url, content=body) as response:
                data = self._read(response)
        except httpx2.TimeoutException:
            raise _Passing(f"no answer within {self._settings.timeout_s:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as cause:
            raise _Passing(self._clean(f"the connection failed: {type(cause).__name__}: {cause}")) from None
        except httpx2.InvalidURL as cause:
            raise Refused(f"{self._section}.base_url cannot be asked: {cause}") from None
        if response.status_code != httpx2.codes.OK:
            raise self._refusal(response, data)
        return self._reply(data, failures)

    def _read(self, response: httpx2.Response) -> bytes:
        """The body, within the time of one request and the bytes of one reply: a timeout of the client's own counts
        from byte to byte."""
        deadline, data = self._clocks.clock() + self._settings.timeout_s, bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_REPLY_BYTES:
                raise _Passing(f"a reply of more than {MAX_REPLY_BYTES >> 20} MB")
            if self._clocks.clock() > deadline:
                raise _Passing(f"no whole answer within {self._settings.timeout_s:g} s")
        return bytes(data)

    def _refusal(self, response: httpx2.Response, data: bytes) -> Exception:
        status = response.status_code
        message, code = _error_of(data)
        said = self._clean(message)
        if code in NO_CREDIT:
            status = 402
        if status in PASSING:
            return _Passing(f"HTTP {status}: {said}", self._asked_wait(response.headers.get("retry-after", "")))
        meaning = {
            402: "the account has no credit",
            401: f"the key is not taken: check the environment variable that {self._section}.key_env names",
            403: f"the key may not do this: check {self._model_setting} and the account",
            404: f"there is no such model or path: check {self._model_setting} and {self._section}.base_url",
        }.get(status, "the request is not taken")
        kind = Barred if status in BARRED else Refused
        return kind(f"{self._where} answered HTTP {response.status_code}: {meaning} ({said})", status, code)

    def _asked_wait(self, value: str) -> float | None:
        """Seconds of a Retry-After header, which holds a number or a date; None where it holds neither."""
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            return max(parsedate_to_datetime(value).timestamp() - self._clocks.now(), 0.0)
        except (ValueError, OverflowError):
            return None

    def _reply(self, data: bytes, failures: tuple[str, ...]) -> Reply:
        try:
            body = _Body.model_validate_json(data)
        except ValidationError as cause:
            first = cause.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the reply"
            raise _Passing(f"half a reply, or none of a chat completion: {where}: {first['msg']}") from None
        choice = body.choices[0]
        finish = choice.finish_reason or ""
        if finish in BROKEN_OFF:
            raise _Passing(f"half a reply: the endpoint broke it off (finish_reason {finish})")
        given = (choice.logprobs.content if choice.logprobs else None) or []
        return Reply(
            self._clean(choice.message.content or "", whole=True),
            self._clean(choice.message.refusal or "", whole=True),
            "length" if finish in CUT else finish,
            self._clean(body.model),
            self._clean(body.system_fingerprint or ""),
            (body.usage.prompt_tokens, body.usage.completion_tokens) if body.usage else None,
            tuple(body.prompt_token_ids or ()),
            tuple(choice.token_ids or ()),
            tuple(token.logprob for token in given),
            failures,
        )

    def _clean(self, text: str, whole: bool = False) -> str:
        """`text` without the key, which an endpoint may repeat, fit to be stored; a short line unless `whole`."""
        if len(self._key) >= SECRET_CHARS:
            text = text.replace(self._key, "[key]")
        text = text.encode(errors="replace").decode()
        return text if whole else " ".join(text.split())[:QUOTED_CHARS]


def _error_of(data: bytes) -> tuple[str, str]:
    """(what an error says, its code), in the form of this interface or in none."""
    text = data.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        if not isinstance(error, dict):
            return str(error), ""
        return str(error["message"]), str(error.get("code") or error.get("type") or "")
    except (ValueError, LookupError, TypeError, RecursionError):
        return text, ""

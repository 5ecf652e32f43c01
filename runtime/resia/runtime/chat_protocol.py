"""What an OpenAI-compatible client asks of `resia serve` and what it is told, as data: shapes and words, no sockets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from resia.agents.ports import Completion, Sampling
from resia.events import Message
from resia.events.ids import seed_for

DEFAULT_TOKENS = 256
MAX_TOKENS = 1_000_000
MAX_CHOICES = 16
SEEDS = 1 << 63


class Refused(Exception):
    """A request that is answered with an error. `code` is the word that programs know it by."""

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
Stop = Annotated[Text, Field(min_length=1)]


class _Part(BaseModel):
    type: Literal["text"]
    text: Text


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_Part]

    def made(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class _Request(BaseModel):
    """Fields that are not here are passed over, but those that would change the answer are refused below."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_CHOICES)] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    return_token_ids: bool | None = None
    top_p: float | None = None
    response_format: dict[str, Any] | None = None

    def unknown(self) -> str:
        """What is asked for and cannot be had; empty: nothing."""
        asked = {
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "top_logprobs": bool(self.top_logprobs),
            "top_p": self.top_p not in (None, 1.0),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
        }
        return ", ".join(name for name, given in asked.items() if given)


class Asked(NamedTuple):
    """A request for completions: one prompt, a seed a choice. `logprobs` and `ids` of tokens are told where asked."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    stream: bool
    logprobs: bool = False
    ids: bool = False


def read(body: bytes, drawn_seed: int) -> Asked:
    """A request's body; `drawn_seed` where it names none. Raises Refused."""
    try:
        request = _Request.model_validate_json(body)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Refused(400, f"{where}: {first['msg']}") from None
    if unknown := request.unknown():
        raise Refused(400, f"this server does not know {unknown}: leave it out", "unsupported_parameter")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    temperature = 1.0 if request.temperature is None else request.temperature
    tokens = request.max_completion_tokens or request.max_tokens or DEFAULT_TOKENS
    seed = (drawn_seed if request.seed is None else request.seed) % SEEDS
    seeds = (seed, *(seed_for(seed, "choice", n) for n in range(1, request.n or 1)))
    messages = tuple(message.made() for message in request.messages)
    sampling, told = Sampling(temperature, tokens, stop), (bool(request.logprobs), bool(request.return_token_ids))
    return Asked(request.model, messages, sampling, seeds, bool(request.stream), *told)


def error(message: str, code: str, status: int) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def models(name: str, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "resia"}


def completion(
    id_: str, created: int, name: str, found: Sequence[Completion], fingerprint: str = "", asked: Asked | None = None
) -> dict[str, Any]:
    """The whole answer, in the order of the choices; token ids as vLLM gives them."""
    prompt = len(found[0].prompt_ids)
    said = sum(len(one.token_ids) for one in found)
    return {
        "id": id_,
        "object": "chat.completion",
        "created": created,
        "model": name,
        "system_fingerprint": fingerprint or None,
        "choices": [_choice(n, one, asked) for n, one in enumerate(found)],
        "usage": {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said},
        **({"prompt_token_ids": list(found[0].prompt_ids)} if asked and asked.ids else {}),
    }


def _choice(number: int, one: Completion, asked: Asked | None) -> dict[str, Any]:
    """A token is named by its id, for the engine tells no text of single tokens. Log-probabilities are of the
    distribution that was sampled, the temperature in it."""
    pairs = zip(one.token_ids, one.logprobs, strict=True)
    empty = {"bytes": None, "top_logprobs": list[Any]()}
    tokens = [{"token": f"token_id:{t}", "logprob": p, **empty} for t, p in pairs]
    return {
        "index": number,
        "message": {"role": "assistant", "content": one.text},
        "finish_reason": one.finish,
        **({"logprobs": {"content": tokens}} if asked and asked.logprobs else {}),
        **({"token_ids": list(one.token_ids)} if asked and asked.ids else {}),
    }


def chunks(whole: dict[str, Any]) -> bytes:
    """The same as server-sent events: each choice in one piece, for the engine tells no text before its end."""
    head = {key: whole[key] for key in ("id", "created", "model", "system_fingerprint")} | {
        "object": "chat.completion.chunk"
    }
    lines: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        lines.append(head | {"choices": [{"index": choice["index"], "delta": choice["message"]}]})
        last = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        lines.append(head | {"choices": [last]})
    lines.append(head | {"choices": [], "usage": whole["usage"]})
    return "".join(f"data: {json.dumps(line)}\n\n" for line in lines).encode() + b"data: [DONE]\n\n"

"""What resia and a vLLM server say to each other: the served name, requests, and replies checked.

vLLM tells nothing of precision, device or weights, so the name under which `resia engine vllm serve` has a base served
says it: whoever asks for that name is answered by that base, or not at all.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat

from resia.agents.ports import Sampling
from resia.events.errors import ModelError

PREFIX = "resia-base"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # --max-lora-rank takes these and no other
PROBE = "A probe: café, 1234, 法\n\ttwo  spaces."
Token = Annotated[int, Field(ge=0)]


class Base(BaseModel, frozen=True):
    """A base as it is served. `digest` is of its weights; `device` one word such as cpu-avx512; at most `slots`
    adapters of rank up to `rank` are loaded at a time."""

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    dtype: Annotated[str, Field(pattern="^[a-z0-9]+$")]
    device: Annotated[str, Field(pattern="^[a-z0-9-]+$")]
    threads: Annotated[int, Field(ge=0)]
    rank: Annotated[int, Field(ge=1)]
    slots: Annotated[int, Field(ge=1)]

    def name(self) -> str:
        """The name that it is served under."""
        return ".".join((PREFIX, *(str(value) for value in self.model_dump().values())))


def base_named(name: str) -> Base | None:
    """Inverse of `Base.name`; None for any other name."""
    prefix, *values = name.split(".")
    if prefix != PREFIX or len(values) != len(Base.model_fields):
        return None
    try:
        return Base.model_validate(dict(zip(Base.model_fields, values, strict=True)))
    except ValueError:
        return None


class Model(BaseModel):
    """One entry of the list of models: `root` is the folder of a base or an adapter."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    data: list[Model]


class Version(BaseModel):
    version: str


class Tokens(BaseModel):
    tokens: list[Token]


class _Logprobs(BaseModel):
    token_logprobs: list[FiniteFloat]


class _Choice(BaseModel):
    token_ids: list[Token]
    prompt_token_ids: list[Token] | None = None
    logprobs: _Logprobs
    finish_reason: str


class Completed(BaseModel):
    """The reply to `completion`."""

    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]


class Sampled(BaseModel, frozen=True):
    """Tokens, their log-probabilities, and whether the server says that it stopped before the most it might."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


def completion(model: str, prompt: list[int], sampling: Sampling, seed: int, ends: frozenset[int]) -> dict[str, Any]:
    """The request for one completion. What a model's own generation settings might add to the distribution is switched
    off by name: the log-probabilities must be those of softmax(logits / temperature)."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(ends),
        "skip_special_tokens": False,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
    }


def sampled(reply: Completed, prompt: list[int], most: int) -> Sampled:
    """What a reply holds; ModelError where it cannot be an answer to `prompt` of at most `most` tokens."""
    choice = reply.choices[0]
    tokens, logprobs = choice.token_ids, choice.logprobs.token_logprobs
    if choice.prompt_token_ids is not None and choice.prompt_token_ids != prompt:
        raise ModelError("the vLLM server answered another prompt than it was given")
    if len(tokens) != len(logprobs) or not 1 <= len(tokens) <= most:
        raise ModelError(
            f"the vLLM server gave {len(tokens)} tokens with {len(logprobs)} log-probabilities where 1 to {most} were"
            " asked for"
        )
    return Sampled(token_ids=tuple(tokens), logprobs=tuple(logprobs), stopped=choice.finish_reason == "stop")

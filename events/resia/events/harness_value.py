"""The harness as a value: four versioned components, content-addressed together and one by one."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .ids import sha256

HARNESS_MEDIA = "application/vnd.resia.harness+json"
Component = Literal["system_prompt", "tool_dispatch", "retry_policy", "answer_extraction"]
COMPONENTS: tuple[Component, ...] = ("system_prompt", "tool_dispatch", "retry_policy", "answer_extraction")


class Example(msgspec.Struct, frozen=True):
    """One demonstration, shown to the model as a user turn and an assistant turn."""

    user: str
    assistant: str


class SystemPrompt(msgspec.Struct, frozen=True):
    """What the model reads before the item: an instruction and demonstrations as chat turns."""

    text: str
    examples: tuple[Example, ...] = ()


class RetryPolicy(msgspec.Struct, frozen=True):
    """Sampling, second tries and votes. `temperature` applies to sampled rollouts; greedy ones ignore it."""

    temperature: Annotated[float, Meta(gt=0.0, le=2.0)] = 0.7
    max_new_tokens: Annotated[int, Meta(ge=1, le=4096)] = 32
    attempts: Annotated[int, Meta(ge=1, le=8)] = 1  # tries in all when an answer cannot be extracted
    stop: tuple[str, ...] = ("\n",)
    tool_turns: Annotated[int, Meta(ge=0, le=16)] = 0  # turns of a rollout that may end in an observation, no answer
    asks: Annotated[int, Meta(ge=0, le=32)] = 8  # times that dispatch may ask the model in a rollout
    votes: Annotated[int, Meta(ge=1, le=15)] = 1  # completions a try; the answer that most of them give counts


class Harness(msgspec.Struct, frozen=True):
    """Everything between the item and the answer that is not weights.

    `tool_dispatch` is Python source of `dispatch(request, tools) -> answer | observation`, `answer_extraction` of
    `extract(text) -> request | None`; both run only in the sandbox. An answer is a dict; an observation is a str, which
    the model is told before it goes on, `tool_turns` times at most. With `asks` there is `tools.ask(prompt=...)`.
    """

    system_prompt: SystemPrompt
    tool_dispatch: str
    retry_policy: RetryPolicy
    answer_extraction: str

    def encoded(self) -> bytes:
        """Canonical bytes: the blob that an event names, and what the digest is of."""
        return _canonical(self)

    def digest(self) -> str:
        return sha256(self.encoded())

    def component_digests(self) -> dict[Component, str]:
        """Digest of each component on its own, so that an edit of one shows as one."""
        return {name: sha256(_canonical(getattr(self, name))) for name in COMPONENTS}


# Fields of the retry policy that came after the first harnesses: left out at their default, so that a harness which
# does not use them has the bytes, and the digest, that it had before.
_LATER = {"votes": 1, "tool_turns": 0, "asks": 8}


def _canonical(value: Harness | SystemPrompt | RetryPolicy | str) -> bytes:
    plain = msgspec.to_builtins(value, order="deterministic")
    policy = plain if isinstance(value, RetryPolicy) else plain["retry_policy"] if isinstance(value, Harness) else {}
    for name, default in _LATER.items():
        if policy.get(name, default) == default:
            policy.pop(name, None)
    return msgspec.json.encode(plain)  # in the order of the fields, as a Struct is written


def decode_harness(data: bytes) -> Harness:
    """Inverse of `Harness.encoded`; raises msgspec.ValidationError on anything else."""
    return msgspec.json.decode(data, type=Harness)

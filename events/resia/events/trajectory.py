"""What a rollout's blob holds: every call with its tokens and log-probabilities, tool use and observation."""

from __future__ import annotations

import msgspec

from .ids import sha256


class Message(msgspec.Struct, frozen=True):
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tool use: JSON text of the arguments and of what came back, and the tokens of a model that it asked."""

    name: str
    arguments: str
    result: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


OUTVOTED = "outvoted"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call as its endpoint counts them, `estimated` from bytes where it does not."""

    prompt: int
    completion: int
    estimated: bool = False


class Turn(msgspec.Struct, frozen=True):
    """One model call and what followed from it.

    `prompt_ids` and `completion_ids` are vocabulary ids; `logprobs` (natural log, same length as
    `completion_ids`) are those of the distribution that was sampled, softmax(logits / temperature), so the
    trainer divides its logits by the same temperature before it takes an importance ratio; greedy turns
    (temperature 0) hold them at temperature 1. `reward` is earned on the last token of the turn. `failure` is the class
    of what could not be used, empty where it could; OUTVOTED, and then the class, where another completion of the same
    try was elected. `usage` is there where an endpoint counted the tokens and may have given no ids; log-probabilities
    are then as it gave them, one a token, or none. A turn without it has the bytes that it had before there were any.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str  # stop | length | refusal: the endpoint withheld the answer
    request: str = ""  # JSON of what was extracted, empty when nothing was
    calls: tuple[ToolCall, ...] = ()
    failure: str = ""
    reward: float = 0.0
    usage: Usage | msgspec.UnsetType = msgspec.UNSET

    @property
    def prompt_tokens(self) -> int:
        """Read by the model for this turn, those of what its dispatch asked among them."""
        own = self.usage.prompt if isinstance(self.usage, Usage) else len(self.prompt_ids)
        return own + sum(call.prompt_tokens for call in self.calls)

    @property
    def completion_tokens(self) -> int:
        """Sampled for this turn, likewise."""
        own = self.usage.completion if isinstance(self.usage, Usage) else len(self.completion_ids)
        return own + sum(call.completion_tokens for call in self.calls)

    @property
    def outvoted(self) -> bool:
        return self.failure.startswith(OUTVOTED)


class Trajectory(msgspec.Struct, frozen=True):
    """A rollout whole: its turns in order and the final answer as canonical text (empty: none)."""

    item: str
    seed: int
    temperature: float
    turns: tuple[Turn, ...]
    answer: str = ""

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def digest(self) -> str:
        return sha256(self.encoded())


def decode_trajectory(data: bytes) -> Trajectory:
    """Inverse of `Trajectory.encoded`; raises msgspec.ValidationError on anything else."""
    return msgspec.msgpack.decode(data, type=Trajectory)

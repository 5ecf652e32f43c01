"""A learned choice of the algorithm, frozen: what past weight updates gained, by the rule that fired and by algorithm.

It travels whole in the run's first event, so whoever replays the run decides with the same numbers and reads nothing
else. How it chooses is in `agents/policy.py`; how it is made from logs in `agents/experience.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .ids import sha256
from .settings import Algorithm, Count, NotNegative, Positive, Share


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Updates by one algorithm where one rule fired, and the sum of their gated gains a unit of cost."""

    trials: Count
    gain: NotNegative


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that was learned from: `digest` is that of its state, `updates` how many of its updates count."""

    run: str
    digest: str
    updates: Count


class LearnedPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`arms` by context (the rule that the published rules fire on a landscape) and algorithm.

    `epsilon` is the share of decisions drawn evenly, `exploration` the c of the confidence bonus, `unit_tokens` the
    tokens that cost 1. `sources` are sorted by run.
    """

    arms: dict[str, dict[Algorithm, Arm]] = {}
    epsilon: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    exploration: Share = 0.2
    unit_tokens: Positive = 1
    sources: tuple[Source, ...] = ()
    version: Literal[1] = 1

    def encoded(self) -> bytes:
        """Canonical JSON, every field in it; the bytes of the policy's file."""
        return msgspec.json.encode(self, order="deterministic")

    def digest(self) -> str:
        """SHA-256 of `encoded`."""
        return sha256(self.encoded())


def decode_policy(data: bytes) -> LearnedPolicy:
    """Inverse of `encoded`. Raises msgspec.ValidationError or msgspec.DecodeError for anything else."""
    return msgspec.json.decode(data, type=LearnedPolicy)

"""What past runs say, frozen: what weight updates gained, by the rule that fired and by algorithm, and what edits did,
by the failures that prevailed and by operator.

It travels whole in the run's first event, so whoever replays the run decides with the same numbers and reads nothing
else. How it chooses is in `agents/policy.py` and `agents/operators/ranking.py`; how it is made from logs in
`agents/experience.py` and `agents/edit_experience.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .ids import sha256
from .settings import Algorithm, Count, NotNegative, Positive, Share


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Updates by one algorithm where one rule fired, and the sum of their gated gains a unit of cost."""

    trials: Count
    gain: NotNegative


class OperatorArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Edits by one operator where one outcome class prevailed: how many were measured, how many of them the gate
    accepted, and the sum of their effects on validation, whatever the gate said."""

    tries: Count
    accepted: Count
    effect: float


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that was learned from: `digest` is that of its state, `updates` and `edits` how many of each count."""

    run: str
    digest: str
    updates: Count
    edits: Count = 0


class LearnedPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`arms` by context (the rule that the published rules fire on a landscape) and algorithm.

    `epsilon` is the share of decisions drawn evenly, `exploration` the c of the confidence bonus, `unit_tokens` the
    tokens that cost 1. `sources` are sorted by run. `operators` are edits by the outcome class that prevailed and by
    operator, `operator_scale` in [0, 1] the effect that an operator had where it was meant for every outcome.
    """

    arms: dict[str, dict[Algorithm, Arm]] = {}
    epsilon: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    exploration: Share = 0.2
    unit_tokens: Positive = 1
    sources: tuple[Source, ...] = ()
    version: Literal[1] = 1
    operators: dict[str, dict[str, OperatorArm]] = {}
    operator_scale: Share = 1.0

    def encoded(self) -> bytes:
        """Canonical JSON; the bytes of the policy's file. What it says of edits is left out where it says nothing, so
        that policies of before have the digest that they had."""
        plain: dict[str, Any] = msgspec.to_builtins(self, order="deterministic")
        if not self.operators:
            del plain["operators"], plain["operator_scale"]
            plain["sources"] = [{k: v for k, v in source.items() if k != "edits"} for source in plain["sources"]]
        return msgspec.json.encode(plain)  # in the order of the fields, as a Struct is written

    def digest(self) -> str:
        """SHA-256 of `encoded`."""
        return sha256(self.encoded())


def decode_policy(data: bytes) -> LearnedPolicy:
    """Inverse of `encoded`. Raises msgspec.ValidationError or msgspec.DecodeError for anything else."""
    return msgspec.json.decode(data, type=LearnedPolicy)

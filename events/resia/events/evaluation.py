"""Measuring a candidate: EvaluationRequested -> RolloutsRequested (shards) -> RolloutRecorded*, RolloutFailed*,
ShardSampled -> EvaluationCompleted. Purpose `sampling` draws more search rollouts of a candidate that is measured."""

from __future__ import annotations

from typing import Literal

import msgspec

from .blob import Blob
from .run import Candidate
from .settings import Perturbation, Split

Purpose = Literal["candidate", "training", "test", "baseline", "probe", "sampling"]
# Decided in one place (agents/episode.py); an infrastructure failure is never one of these.
Failure = Literal["wrong", "parse", "refusal", "truncation", "tool_error", "timeout", "sandbox_violation"]
FORMAT_FAILURES: tuple[Failure, ...] = ("parse", "refusal", "truncation", "tool_error", "timeout")


class Slot(msgspec.Struct, frozen=True):
    """One rollout to sample: item, repeat index and seed; `greedy` ignores the temperature.

    `probe` names how the prompt is perturbed (None: not at all); such a rollout counts in no score.
    """

    split: Split
    item: str
    index: int
    seed: int
    greedy: bool = False
    probe: Perturbation | None = None


class EvaluationRequested(msgspec.Struct, frozen=True):
    """Measure `candidate` on `slots`. `iteration` is the number of decisions taken before."""

    purpose: Purpose
    iteration: int
    candidate: Candidate
    slots: tuple[Slot, ...]


class RolloutsRequested(msgspec.Struct, frozen=True):
    """One shard: slots sampled as one batch, because the batch's composition may change low-precision tokens.

    `evaluation` is the id of the EvaluationRequested or, for purpose training, of the TrainingRequested;
    `round` counts training rounds from 0. shard numbers run from 0 to `shards` - 1. `retry` counts how often these
    slots of an evaluation had been lost to infrastructure before.
    """

    evaluation: str
    purpose: Purpose
    candidate: Candidate
    slots: tuple[Slot, ...]
    shard: int
    shards: int
    round: int = 0
    retry: int = 0


class RolloutRecorded(msgspec.Struct, frozen=True, gc=False):
    """One scored rollout. `reward` in [0, 1]; `failure` None when the answer was valid and `success` tells more.

    `success` is the domain's predicate (beats the domain's reference on this item). `step_rewards`: what each step
    earned, one an answer and one for a step that failed. `trajectory` is the blob.
    """

    evaluation: str
    purpose: Purpose
    round: int
    split: Split
    item: str
    index: int
    seed: int
    greedy: bool
    reward: float
    success: bool
    failure: Failure | None
    detail: str
    metrics: dict[str, float]
    answer: str
    step_rewards: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    trajectory: Blob
    reused: bool = False  # the same answer on the same item had been scored before
    probe: Perturbation | None = None  # the slot's


class RolloutFailed(msgspec.Struct, frozen=True):
    """Infrastructure failed (not the agent): asked for again (`sampling.retries`), never scored, and counted."""

    evaluation: str
    purpose: Purpose
    round: int
    split: Split
    item: str
    index: int
    error: str


class Manifest(msgspec.Struct, frozen=True):
    """What sampled tokens depend on beside the seeds, and the sandbox tier that ran the harness.

    Of an endpoint: the model that it said it was (`model`), its URL (`endpoint`) and the fingerprints that it gave of
    itself in the last batch (`fingerprint`); `model_digest` is of URL and name, as nobody here has its weights.
    `engine` names a server and its version, which promises no bits; empty for the engine of this package.
    """

    model: str
    model_digest: str
    dtype: str
    threads: int
    instruction_set: str
    package: str
    sandbox_tier: str = ""
    endpoint: str = ""
    fingerprint: str = ""
    engine: str = ""


class ShardSampled(msgspec.Struct, frozen=True):
    """Outcome of one RolloutsRequested; `seconds` is what the clock said and decides nothing."""

    request: str
    evaluation: str
    purpose: Purpose
    shard: int
    shards: int
    round: int
    rollouts: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    manifest: Manifest
    retry: int = 0


class SplitScore(msgspec.Struct, frozen=True):
    """Mean reward over a split's items (each item's mean first), coverage = scored / asked."""

    items: int
    rollouts: int
    mean: float
    successes: int
    coverage: float
    distinct_answers: int


class EvaluationCompleted(msgspec.Struct, frozen=True):
    """Closes `request`; `rollouts` are event ids, sorted, so whoever closes it closes it identically. `failed` slots
    have no rollout, all their retries included. Rollouts of a probe are listed and in no score."""

    request: str
    purpose: Purpose
    iteration: int
    candidate: Candidate
    rollouts: tuple[str, ...]
    failed: int
    scores: dict[Split, SplitScore]
    failures: dict[str, int]  # on the search split, by class

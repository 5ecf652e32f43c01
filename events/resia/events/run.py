"""A run's beginning and end: RunRequested ... (BudgetSpent) ... TestUnsealed, ControlRequested -> ControlMeasured |
ControlFailed, RunCompleted | RunFailed."""

from __future__ import annotations

from typing import Literal

import msgspec

from .blob import Blob
from .policy import LearnedPolicy
from .settings import Algorithm, Perturbation, RunSettings, Split


class Candidate(msgspec.Struct, frozen=True):
    """What is measured: a harness and an adapter (None: the base weights)."""

    harness: Blob
    adapter: Blob | None = None


class Parent(msgspec.Struct, frozen=True):
    """Where a forked run began: its history is the parent's events 1 to `sequence`, whose Merkle root is recorded.

    `iteration` is the parent's decision that is taken anew; 0 in a log of a package that did not name it.
    """

    run: str
    sequence: int
    merkle_root: str
    iteration: int = 0


class RunRequested(msgspec.Struct, frozen=True):
    """A person asks for a run. `domain_digest` pins the data, `model_digest` the base weights (SHA-256).

    What rules need of the domain and the package stands here too: item names by split, whether rewards only rank
    (`ordinal`), whether the best rollout is what counts (`objective` max), whether they are 0 or 1 (`binary`), and
    the `algorithms` that this package has built. `policy` draws the algorithm of an update; None: the published rules
    choose it. `perturbations` are the probes that the domain's prompts allow, `verifier` the metric that is its second
    score (empty: none).
    """

    settings: RunSettings
    settings_digest: str
    domain_digest: str
    model_digest: str
    items: dict[Split, tuple[str, ...]]
    algorithms: tuple[Algorithm, ...]
    objective: Literal["mean", "max"] = "mean"
    ordinal: bool = False
    binary: bool = False
    parent: Parent | None = None
    policy: LearnedPolicy | None = None
    perturbations: tuple[Perturbation, ...] = ()
    verifier: str = ""


class TestUnsealed(msgspec.Struct, frozen=True):
    """The sealed test opens, once in a lineage, for the champion and for generation 0 beside it."""

    __test__ = False  # not a pytest class

    champion: Candidate
    baseline: Candidate


class ControlRequested(msgspec.Struct, frozen=True):
    """Measure what no learning reaches: the domain's fixed answers and random search with `budget` rollouts."""

    budget: int
    seed: int


class ControlScore(msgspec.Struct, frozen=True):
    """One control on one split: mean reward over its items and the metrics behind it."""

    name: str
    split: str
    mean: float
    items: int
    metrics: dict[str, float] = {}
    answer: str = ""


class ControlMeasured(msgspec.Struct, frozen=True):
    """Every control of the domain, on every split."""

    request: str
    scores: tuple[ControlScore, ...]


class ControlFailed(msgspec.Struct, frozen=True):
    """The controls could not be measured; the run goes on without them and says so."""

    request: str
    error: str


class MessageQuarantined(msgspec.Struct, frozen=True):
    """Message `sequence` of the stream is no event that its writer may write: every reader skips it, for `why`.

    `leaf` is its hash, so that a later reader knows whether it is still the same message.
    """

    sequence: int
    leaf: str
    why: str


class BudgetSpent(msgspec.Struct, frozen=True):
    """A budget that only a clock can measure is spent: `spent` of `limit`, in seconds. Rules stop by this fact."""

    kind: Literal["seconds"]
    limit: float
    spent: float


class RunCompleted(msgspec.Struct, frozen=True):
    """The loop stopped by its own rules. Means are rewards in [0, 1]; None: nothing scored."""

    reason: str
    champion: Candidate
    baseline: Candidate
    champion_test: float | None
    baseline_test: float | None
    merkle_root: str
    root_from: int  # the root covers the events in (root_from, root_to]
    root_to: int


class RunFailed(msgspec.Struct, frozen=True):
    """The run cannot go on; `error` says why."""

    error: str

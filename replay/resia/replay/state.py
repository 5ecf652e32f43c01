"""The state of a run: everything that any rule reads, as one immutable value.

`fold.evolve` builds it from facts; `digest` identifies it. Maps are persistent (immutables.Map), so every state of
the past stays valid and folding one fact in costs O(log n).
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import msgspec
from immutables import Map

from resia.events import (
    INFRASTRUCTURE,
    AdapterTrained,
    BudgetSpent,
    Candidate,
    Component,
    ControlFailed,
    ControlMeasured,
    DecisionMade,
    DriftFailed,
    DriftMeasured,
    EvaluationCompleted,
    EvaluationRequested,
    GateReport,
    HarnessDrafted,
    HarnessEdited,
    KernelBenchmarked,
    KernelRejected,
    KernelSubmitted,
    ProbeAlarmed,
    RolloutFailed,
    RolloutRecorded,
    RoundTrained,
    RunCompleted,
    RunFailed,
    RunRequested,
    Split,
    StepTrained,
    TestUnsealed,
    TrainingFailed,
    TrainingRequested,
)

from .ledger import Ledger

Status = Literal["empty", "running", "completed", "failed"]
Outcome = Literal["accepted", "rejected", "undecided", "failed"]
Lever = Literal["draft", "edit_harness", "train_weights"]


Place = tuple[Split, str, int]  # what a slot of an evaluation is known by: split, item, index


class Evaluation(msgspec.Struct, frozen=True):
    """A measurement in progress or closed. Keys of `rollouts` and `failed` are event ids, of `shards` shard numbers."""

    id: str
    request: EvaluationRequested
    rollouts: Map[str, RolloutRecorded] = Map()
    failed: Map[str, RolloutFailed] = Map()
    shards: Map[int, int] = Map()  # shard number -> shards in all
    completed: EvaluationCompleted | None = None

    @property
    def all_sampled(self) -> bool:
        return any(len(self.shards) == total for total in self.shards.values())

    @property
    def losses(self) -> dict[Place, int]:
        """How often infrastructure lost each slot that has no rollout."""
        held = {(r.split, r.item, r.index) for r in self.rollouts.values()}
        return dict(Counter(place for f in self.failed.values() if (place := (f.split, f.item, f.index)) not in held))


class Training(msgspec.Struct, frozen=True):
    """A weight update in progress or done. `fresh` maps a round to its shards sampled so far."""

    id: str
    request: TrainingRequested
    rollouts: Map[str, RolloutRecorded] = Map()
    fresh: Map[int, Map[int, int]] = Map()
    asked: Map[int, str] = Map()  # round -> id of its RoundRequested
    rounds: tuple[RoundTrained, ...] = ()
    steps: tuple[StepTrained, ...] = ()
    outcome: AdapterTrained | TrainingFailed | None = None

    def round_sampled(self, round_: int) -> bool:
        shards = self.fresh.get(round_, Map())
        return any(len(shards) == total for total in shards.values())


class Champion(msgspec.Struct, frozen=True):
    """The best candidate so far and the evaluation that crowned it. `canaries` are fixed at that moment."""

    candidate: Candidate
    evaluation: str
    canaries: tuple[str, ...] = ()


class Trial(msgspec.Struct, frozen=True):
    """One thing tried: an operator or an algorithm on a parent candidate, with its measured effect on validation."""

    iteration: int
    lever: Lever
    name: str
    parent: Candidate | None
    outcome: Outcome
    gate: GateReport | None
    detail: str = ""


KernelOutcome = KernelBenchmarked | KernelRejected


class Kernel(msgspec.Struct, frozen=True):
    """A kernel that was submitted and what came of each attempt; those that are no word on it may be among them."""

    submitted: KernelSubmitted
    outcomes: Map[int, KernelOutcome] = Map()  # by attempt

    @property
    def verdict(self) -> KernelOutcome | None:
        """The last word on it; None where every attempt ended in the bench's own failure, or none has ended."""
        said = [found for _, found in sorted(self.outcomes.items()) if not broke(found)]
        return said[-1] if said else None


def broke(outcome: KernelOutcome) -> bool:
    """Whether it was the bench that failed."""
    return isinstance(outcome, KernelRejected) and outcome.failure == INFRASTRUCTURE


class Origin(msgspec.Struct, frozen=True):
    """One edit that led to a harness. `measured` False: the harness was known by then, and was not measured again."""

    iteration: int
    parent: str
    operator: str
    component: Component | None = None
    rationale: str = ""
    measured: bool = True


class DecisionAt(NamedTuple):
    """A decision and its event number."""

    sequence: int
    decision: DecisionMade


class RunState(msgspec.Struct, frozen=True):
    """A run after `sequence` events. Fields a clock or a worker's name could touch are not here."""

    sequence: int = 0
    status: Status = "empty"
    request: RunRequested | None = None
    harnesses: Map[str, HarnessDrafted | HarnessEdited] = Map()  # by harness digest
    origins: Map[str, tuple[Origin, ...]] = Map()  # by harness digest: every edit that led to it, in order
    adapters: Map[str, AdapterTrained] = Map()  # by adapter digest
    evaluations: Map[str, Evaluation] = Map()  # by request id, in no order
    evaluation_order: tuple[str, ...] = ()
    trainings: Map[str, Training] = Map()
    champion: Champion | None = None
    baseline: Champion | None = None
    decisions: tuple[DecisionAt, ...] = ()
    trials: tuple[Trial, ...] = ()
    fresh_from: int = 0  # trials before this index were on an earlier champion
    alarms: tuple[ProbeAlarmed, ...] = ()
    drifts: Map[str, DriftMeasured | DriftFailed] = Map()  # by evaluation id; no rule reads them
    unsealed: TestUnsealed | None = None
    controls: ControlMeasured | ControlFailed | None = None
    controls_asked: bool = False
    ending: RunCompleted | RunFailed | None = None
    ledger: Ledger = Ledger()
    cycles: Map[int, Ledger] = Map()  # by the decisions taken before; their sum is the ledger
    overdrawn: Map[str, BudgetSpent] = Map()  # budgets that a clock said are spent, by kind
    scores: Map[tuple[str, str], str] = Map()  # (item, answer) -> id of the rollout that was scored
    kernels: Map[str, Kernel] = Map()  # by the key of their submissions
    submissions: Map[str, KernelSubmitted] = Map()  # by event id
    settled: Map[str, None] = Map()  # requests that have their outcome
    skipped: tuple[int, ...] = ()  # numbers of messages that are no events
    leaves: Map[int, str] = Map()  # of the events after `root_to`
    root_to: int = 0

    @property
    def gates(self) -> int:
        """Paired tests made so far: k of the alpha spending."""
        return sum(t.gate is not None and t.gate.test > 0 for t in self.trials)

    @property
    def iteration(self) -> int:
        return len(self.decisions)

    def iteration_at(self, sequence: int) -> int:
        """The iteration of event `sequence`, which is folded in: the decisions taken at or before it."""
        return sum(at.sequence <= sequence for at in self.decisions)

    @property
    def current_trials(self) -> tuple[Trial, ...]:
        """Trials on the present champion."""
        return self.trials[self.fresh_from :]

"""The closed union of facts: every event of the core with its permanent wire type and current version.

A new event goes here, into `Event`, and into every `match` that mypy then points at.
"""

from __future__ import annotations

from typing import get_args

from .decision import CandidateAccepted, CandidateRejected, CandidateUndecided, DecisionMade, ProbeAlarmed
from .drift import DriftFailed, DriftMeasured, DriftRequested
from .evaluation import (
    EvaluationCompleted,
    EvaluationRequested,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    ShardSampled,
)
from .harness import DraftFailed, EditFailed, EditRequested, HarnessDrafted, HarnessEdited
from .kernel import KernelBenchmarked, KernelRejected, KernelSubmitted
from .run import (
    BudgetSpent,
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    MessageQuarantined,
    RunCompleted,
    RunFailed,
    RunRequested,
    TestUnsealed,
)
from .training import (
    AdapterTrained,
    RoundRequested,
    RoundTrained,
    StepTrained,
    TrainingFailed,
    TrainingRequested,
)

Event = (
    RunRequested
    | HarnessDrafted
    | DraftFailed
    | EvaluationRequested
    | RolloutsRequested
    | RolloutRecorded
    | RolloutFailed
    | ShardSampled
    | KernelSubmitted
    | KernelBenchmarked
    | KernelRejected
    | EvaluationCompleted
    | CandidateAccepted
    | CandidateRejected
    | CandidateUndecided
    | ProbeAlarmed
    | DecisionMade
    | EditRequested
    | HarnessEdited
    | EditFailed
    | TrainingRequested
    | RoundRequested
    | StepTrained
    | RoundTrained
    | AdapterTrained
    | TrainingFailed
    | DriftRequested
    | DriftMeasured
    | DriftFailed
    | TestUnsealed
    | ControlRequested
    | ControlMeasured
    | ControlFailed
    | MessageQuarantined
    | BudgetSpent
    | RunCompleted
    | RunFailed
)

EVENT_CLASSES: tuple[type[Event], ...] = get_args(Event)

# Wire type -> class. A wire type is one subject token and permanent, whatever becomes of the Python name.
TYPES: dict[str, type[Event]] = {
    "run-requested": RunRequested,
    "harness-drafted": HarnessDrafted,
    "draft-failed": DraftFailed,
    "evaluation-requested": EvaluationRequested,
    "rollouts-requested": RolloutsRequested,
    "rollout-recorded": RolloutRecorded,
    "rollout-failed": RolloutFailed,
    "shard-sampled": ShardSampled,
    "kernel-submitted": KernelSubmitted,
    "kernel-benchmarked": KernelBenchmarked,
    "kernel-rejected": KernelRejected,
    "evaluation-completed": EvaluationCompleted,
    "candidate-accepted": CandidateAccepted,
    "candidate-rejected": CandidateRejected,
    "candidate-undecided": CandidateUndecided,
    "probe-alarmed": ProbeAlarmed,
    "decision-made": DecisionMade,
    "edit-requested": EditRequested,
    "harness-edited": HarnessEdited,
    "edit-failed": EditFailed,
    "training-requested": TrainingRequested,
    "round-requested": RoundRequested,
    "step-trained": StepTrained,
    "round-trained": RoundTrained,
    "adapter-trained": AdapterTrained,
    "training-failed": TrainingFailed,
    "drift-requested": DriftRequested,
    "drift-measured": DriftMeasured,
    "drift-failed": DriftFailed,
    "test-unsealed": TestUnsealed,
    "control-requested": ControlRequested,
    "control-measured": ControlMeasured,
    "control-failed": ControlFailed,
    "message-quarantined": MessageQuarantined,
    "budget-spent": BudgetSpent,
    "run-completed": RunCompleted,
    "run-failed": RunFailed,
}

NAMES: dict[type[Event], str] = {cls: name for name, cls in TYPES.items()}

# Every type is at version 1 but these; the codec upcasts what older logs hold.
VERSIONS: dict[str, int] = {"run-requested": 2, "step-trained": 2}

# Events whose identity is the request they close, or what they ask, not the event that happened to trigger them, so
# that racing workers derive one id. Value: the fields that name it; none: once a run.
ANCHORS: dict[type[Event], tuple[str, ...]] = {
    EvaluationCompleted: ("request",),
    RoundRequested: ("training", "round"),
    AdapterTrained: ("training",),
    TrainingFailed: ("training",),
    TestUnsealed: (),
    MessageQuarantined: ("sequence",),
    BudgetSpent: ("kind",),
    KernelSubmitted: ("key", "attempt"),  # whichever rollout asks first
    RunCompleted: (),
    RunFailed: (),
}

# Who may write what. Permissions keep a role to subjects of its own name; this keeps it to facts of its own kind.
WRITERS: dict[str, frozenset[type[Event]]] = {
    "user": frozenset({RunRequested, BudgetSpent}),
    "meta": frozenset({HarnessDrafted, DraftFailed}),
    "task": frozenset(
        {
            EvaluationRequested,
            RolloutsRequested,
            RolloutRecorded,
            RolloutFailed,
            ShardSampled,
            EvaluationCompleted,
            KernelSubmitted,
            ControlRequested,
            ControlMeasured,
            ControlFailed,
        }
    ),
    "feedback": frozenset(
        {
            EvaluationRequested,
            CandidateAccepted,
            CandidateRejected,
            CandidateUndecided,
            ProbeAlarmed,
            DecisionMade,
            EvaluationRequested,
            EditRequested,
            HarnessEdited,
            EditFailed,
            TrainingRequested,
            TestUnsealed,
            MessageQuarantined,
            RunCompleted,
            RunFailed,
        }
    ),
    "trainer": frozenset(
        {
            RoundRequested,
            RolloutsRequested,
            StepTrained,
            RoundTrained,
            AdapterTrained,
            TrainingFailed,
            DriftRequested,
            DriftMeasured,
            DriftFailed,
        }
    ),
    "kernel-bench": frozenset({KernelBenchmarked, KernelRejected}),
}

# Requests that a performance may make of another role, and who performs them.
ASKED: dict[type[Event], str] = {KernelSubmitted: "kernel-bench"}

# Outcomes of `perform`: the envelope's cause is the request they settle.
ENDINGS = (RunCompleted, RunFailed)  # what ends a run
OUTCOMES: tuple[type[Event], ...] = (
    HarnessDrafted,
    DraftFailed,
    HarnessEdited,
    EditFailed,
    ShardSampled,
    RoundTrained,
    TrainingFailed,
    DriftMeasured,
    DriftFailed,
    ControlMeasured,
    ControlFailed,
    KernelBenchmarked,
    KernelRejected,
)


def version_of(name: str) -> int:
    """Current version of the wire type `name`."""
    return VERSIONS.get(name, 1)

"""Given a measured candidate, when a server had sampled it, then its log-probabilities are compared, and only then."""

from __future__ import annotations

import msgspec
import pytest
from immutables import Map
from scripted import Tape
from trainer_given import SETTINGS, tiny_policy

from given import BLOB
from histories import run_request
from resia.events import (
    Blob,
    Candidate,
    DriftFailed,
    DriftMeasured,
    DriftRequested,
    EngineSettings,
    EvaluationCompleted,
    EvaluationRequested,
    Manifest,
    RolloutRecorded,
    RunSettings,
    Trajectory,
    Turn,
)
from resia.replay.digest import digest
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.drift_view import drift_text, drifts_of
from resia.trainers.decider import DRIFT_ROLLOUTS, decide
from resia.trainers.drift import measure
from resia.trainers.performing import TrainerPorts

SERVED = EngineSettings("vllm", urls=("http://localhost:8080",))
HERE = Manifest("tiny", "m" * 64, "float32", 1, "x86-64", "0")


def measured(engine: EngineSettings, rollouts: int, purpose="candidate", trajectory=None) -> tuple[Tape, str]:
    """A log up to an evaluation of `rollouts` rollouts that is closed; the evaluation's id."""
    tape = Tape()
    request = msgspec.structs.replace(run_request(), settings=RunSettings(engine=engine, training=SETTINGS))
    candidate = Candidate(BLOB)  # the base
    asked = EvaluationRequested(purpose, 0, candidate, ())
    _, evaluation = tape.add(request, asked)
    found = [recorded(evaluation.envelope.id, n, trajectory or BLOB) for n in range(rollouts)]
    ids = tuple(sorted(fact.envelope.id for fact in tape.add(*found)))
    tape.add(EvaluationCompleted(evaluation.envelope.id, purpose, 0, candidate, ids, 0, {}, {}))
    return tape, evaluation.envelope.id


def recorded(evaluation: str, index: int, trajectory: Blob) -> RolloutRecorded:
    return RolloutRecorded(
        evaluation, "candidate", 0, "search", "s00", index, index, False,
        0.5, True, None, "", {}, "a=1", (0.5,), 10, 5, trajectory,
    )  # fmt: skip


@pytest.mark.parametrize("rollouts", [1, 15, 16, 17, 100])
def test_a_spread_of_what_a_server_sampled_is_compared(rollouts):
    tape, evaluation = measured(SERVED, rollouts)
    closed = tape.facts[-1].event
    (asked,) = decide(tape.state, tape.facts[-1])
    assert isinstance(asked, DriftRequested)
    assert (asked.evaluation, asked.candidate, asked.bound) == (evaluation, closed.candidate, SERVED.drift_limit)
    assert set(asked.rollouts) <= set(closed.rollouts)
    assert min(rollouts, DRIFT_ROLLOUTS // 2) <= len(asked.rollouts) <= DRIFT_ROLLOUTS
    assert list(asked.rollouts) == sorted(asked.rollouts)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.001), ("bfloat16", 0.1)])
def test_the_bound_is_that_of_the_precision(dtype, bound):
    tape, _ = measured(msgspec.structs.replace(SERVED, dtype=dtype), 1)
    assert decide(tape.state, tape.facts[-1])[0].bound == bound


@pytest.mark.parametrize(
    ("engine", "rollouts", "purpose"),
    [
        (EngineSettings(), 4, "candidate"),
        (EngineSettings("openai", "far-model"), 4, "candidate"),
        (SERVED, 0, "candidate"),
        (SERVED, 4, "test"),
        (SERVED, 4, "baseline"),
    ],
)
def test_nothing_is_compared_of_other_engines_an_empty_evaluation_or_a_test(engine, rollouts, purpose):
    tape, _ = measured(engine, rollouts, purpose)
    assert decide(tape.state, tape.facts[-1]) == []


def ports(policy, blobs) -> TrainerPorts:
    return TrainerPorts(lambda _: policy, lambda: HERE, blobs, lambda: 0.0, lambda _: None)


def compared(blobs, policy, trajectory: Trajectory) -> tuple[Tape, object]:
    """The outcome of comparing one rollout that holds `trajectory`."""
    tape, _ = measured(SERVED, 1, trajectory=blobs.put(trajectory.encoded(), "application/x"))
    (request,) = tape.add(*decide(tape.state, tape.facts[-1]))
    ((outcome,),) = measure(tape.state, request, ports(policy, blobs))
    tape.add(outcome, cause=request.envelope.id)
    return tape, outcome


def trajectory(policy, temperature: float, shift: float) -> Trajectory:
    """Two calls with the policy's own log-probabilities, moved by `shift`; the last reached no token."""
    import torch

    from resia.trainers.drift import rows_of

    calls = ((1, 2, 3), (4, 5, 6, 7)), ((1, 2, 3, 9), (8,)), ((1,), ())
    turns = [Turn((), prompt, tokens, (0.0,) * len(tokens), "", "stop") for prompt, tokens in calls]
    with torch.no_grad(), policy.standing_in(None):
        for n, row in enumerate(rows_of(Trajectory("i", 0, temperature, tuple(turns)))):
            own = policy.logprobs(policy.pad([row]))[0].tolist()
            turns[n] = msgspec.structs.replace(turns[n], logprobs=tuple(value + shift for value in own))
    return Trajectory("i", 0, temperature, tuple(turns))


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("shift", "alarmed"), [(0.0, False), (-0.5, True)])
def test_the_difference_is_measured_and_an_alarm_is_a_fact(blobs, policy, temperature, shift, alarmed):
    tape, outcome = compared(blobs, policy, trajectory(policy, temperature, shift))
    assert isinstance(outcome, DriftMeasured)
    assert outcome.tokens == 5
    assert outcome.mean == pytest.approx(abs(shift), abs=1e-5)
    assert outcome.largest == pytest.approx(abs(shift), abs=1e-5)
    assert (outcome.alarmed, outcome.engine, outcome.manifest) == (alarmed, "vllm", HERE)
    assert drifts_of(tape.state) == [outcome]
    assert ("over" if alarmed else "within") in drift_text(outcome)


def test_what_is_no_trajectory_is_a_failure_and_no_alarm(blobs, policy):
    tape, _ = measured(SERVED, 1, trajectory=blobs.put(b"odd", "application/x"))
    (request,) = tape.add(*decide(tape.state, tape.facts[-1]))
    ((outcome,),) = measure(tape.state, request, ports(policy, blobs))
    assert isinstance(outcome, DriftFailed)
    assert "the trajectory of rollout s00/0 cannot be read" in outcome.error


def test_the_digest_counts_a_drift_and_nothing_where_there_is_none(blobs, policy):
    tape, _ = compared(blobs, policy, trajectory(policy, 0.7, 0.0))
    before, after = digest(msgspec.structs.replace(tape.state, drifts=Map())), digest(tape.state)
    assert before != after


@pytest.fixture
def blobs(tmp_path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "blobs")

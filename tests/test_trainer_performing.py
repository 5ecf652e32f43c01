"""A requested round performed on a tiny policy: what it starts from, what it measures from, and what it leaves."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace
from scripted import Tape
from trainer_given import SETTINGS, random_rollouts, tiny_policy

from given import BLOB
from histories import MANIFEST, run_request
from resia.events import (
    ALGORITHMS,
    Candidate,
    EvaluationRequested,
    RolloutRecorded,
    RoundRequested,
    RoundTrained,
    Slot,
    StepTrained,
    TrainingFailed,
    TrainingRequested,
)
from resia.runtime.blobs import DirectoryBlobs
from resia.trainers.adapter import VALUE_HEAD
from resia.trainers.performing import TrainerPorts, train
from resia.trainers.tensorfile import tensors_of

torch = pytest.importorskip("torch")


class Bench:
    """A champion whose search rollouts are recorded, a training of it, and a policy to train."""

    def __init__(self, folder, algorithm, settings=SETTINGS, champion=True, rollouts=None):
        self.blobs, self.tape = DirectoryBlobs(folder), Tape()
        self.policy = tiny_policy(layers=1)
        self.champion = self.blobs.put(self.policy.adapter_bytes()) if champion else None
        self.algorithm = algorithm
        self.tape.add(run_request())
        (asked,) = self.tape.add(EvaluationRequested("candidate", 0, Candidate(BLOB), (Slot("search", "s", 0, 0),)))
        held = random_rollouts(3) if rollouts is None else rollouts
        facts = self.tape.add(*(self._recorded(asked.envelope.id, n, r) for n, r in enumerate(held)))
        self.rollouts = tuple(sorted(f.envelope.id for f in facts))
        request = TrainingRequested(1, algorithm, settings, BLOB, self.champion, asked.envelope.id, 7)
        (self.training,) = self.tape.add(request)

    def _recorded(self, evaluation, index, r) -> RolloutRecorded:
        return RolloutRecorded(
            evaluation, "candidate", 0, "search", r.group, index, index, False, r.reward, r.success, None, "", {}, "",
            (r.reward,), 1, 1, self.blobs.put(r.trajectory.encoded()),
        )  # fmt: skip

    def round(self, number=0, adapter=None, optimizer=None, steps=2) -> list:
        """The facts of a round."""
        id_ = self.training.envelope.id
        event = RoundRequested(id_, self.algorithm, number, steps, self.rollouts, adapter, optimizer, 7)
        (fact,) = self.tape.add(event)
        ports = TrainerPorts(lambda _: self.policy, lambda: MANIFEST, self.blobs, lambda: 0.0, lambda _: None)
        return [e for events in train(self.tape.state, fact, ports) for e in events]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_continues_the_one_before(tmp_path, algorithm):
    bench = Bench(tmp_path, algorithm)
    *steps, first = bench.round(adapter=bench.champion)
    assert [step.step for step in steps] == [0, 1]
    assert all(isinstance(step, StepTrained) and 0 < step.ess <= 1 for step in steps)
    assert isinstance(first, RoundTrained)
    *_, second = bench.round(1, first.adapter, first.optimizer)
    again = Bench(tmp_path, algorithm)
    *_, repeated = again.round(1, first.adapter, first.optimizer)
    assert repeated.adapter == second.adapter != first.adapter != bench.champion
    names = tensors_of(bench.blobs.get(second.adapter), "it").keys()
    assert (names >= VALUE_HEAD) == (algorithm == "ppo_gae")


def test_the_reference_is_the_base_or_the_champion_in_every_round(tmp_path):
    """DPO's loss is ln 2 where the policy is its reference."""
    losses = {}
    for ref in ("base", "champion"):
        bench = Bench(tmp_path, "dpo", replace(SETTINGS, ref=ref, learning_rate=1e-2))
        step, _, first = bench.round(adapter=bench.champion)
        later, *_ = bench.round(1, first.adapter, first.optimizer)
        losses[ref] = (step.loss, later.loss)
    assert losses["champion"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses["champion"][1] < math.log(2) - 0.01
    assert abs(losses["base"][0] - math.log(2)) > 1e-3
    fresh = Bench(tmp_path, "dpo", replace(SETTINGS, ref="champion"), champion=False)
    assert fresh.round()[0].loss == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rollouts_without_a_signal_fail_the_first_round_and_idle_a_later_one(tmp_path, algorithm):
    tied = [r._replace(reward=0.0, success=False) for r in random_rollouts(4)]
    bench = Bench(tmp_path, algorithm, rollouts=tied)
    (failed,) = bench.round(adapter=bench.champion)
    assert isinstance(failed, TrainingFailed)
    assert (failed.step, failed.algorithm) == (-1, algorithm)
    (idle,) = bench.round(1, bench.champion)
    assert isinstance(idle, RoundTrained)
    assert (idle.steps, idle.used, idle.dropped, idle.adapter) == (0, 0, 8, bench.champion)

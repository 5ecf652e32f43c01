"""A requested round performed on a tiny policy: what it starts from, what it measures from, and what it leaves."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace
from trainer_given import SETTINGS, random_rollouts
from training_bench import Bench

from resia.events import ALGORITHMS, RoundTrained, StepTrained, TrainingFailed
from resia.trainers.adapter import VALUE_HEAD
from resia.trainers.tensorfile import tensors_of

torch = pytest.importorskip("torch")


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

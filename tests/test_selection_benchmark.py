"""The benchmark of the choice: its worlds, its training by the real objectives, and a small form of the whole."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from resia.events import ALGORITHMS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


@pytest.fixture
def worlds(module):
    return module("benchmarks.choosing.worlds")


@pytest.fixture
def learner(module):
    return module("benchmarks.choosing.learner")


def rollouts_of(learner, world, group=8, seed=0):
    start = np.zeros(world.base_I_T_A.shape[1:])
    return learner.sample(world, start, np.repeat(np.arange(world.search), group), np.random.default_rng(seed))


def test_each_world_is_what_it_is_called(worlds, learner):
    found = {}
    for name, draw in worlds.WORLDS.items():
        world = draw(np.random.default_rng(0))
        found[name] = learner.features(world, rollouts_of(learner, world), 0)
        assert np.allclose(world.probabilities(np.zeros(world.base_I_T_A.shape[1:])).sum(axis=2), 1.0)
    assert (found["dense-6-step"].horizon, found["dense-6-step"].reward_density > 0.5) == (6, True)
    assert found["sparse-binary-1%"].p_pos == pytest.approx(0.01, abs=0.01)
    assert 0.25 < found["mid-binary"].p_pos < 0.55
    assert found["right-skewed-max"].skew > 0
    assert found["regression-prone"].regression_risk > 0.3
    assert found["costly"].afford == pytest.approx(2.0)


def test_gains_are_exact(worlds, learner):
    """The mean utility of many sampled answers is what the tables say, and the gate refuses a loss."""
    world = worlds.middle(np.random.default_rng(1))
    theta = np.random.default_rng(2).normal(0, 1.0, world.base_I_T_A.shape[1:])
    rng, items = np.random.default_rng(3), np.repeat(np.arange(world.search, len(world.base_I_T_A)), 400)
    means = []
    for policy in (theta, np.zeros_like(theta)):
        drawn = learner.sample(world, policy, items, rng)
        means.append(float(world.utility_I_T_A[drawn.item_N, 0, drawn.action_N_T[:, 0]].mean()))
    change, right = means[0] - means[1], world.utility_I_T_A[0, 0] > 0
    assert world.gain(theta) == pytest.approx(max(change, 0.0), abs=4 * 0.5 * (2 / len(items)) ** 0.5)
    up = np.where(right, 1.0, 0.0)[None]
    assert world.gain(up) > 0
    assert world.gain(-up) == world.gain(np.zeros_like(up)) == 0.0


def test_the_best_of_eight_counts_where_the_objective_is_max(worlds):
    """Brute force over sampled maxima of one item's distribution."""
    world = worlds.skewed(np.random.default_rng(4))
    chances, worth = world.probabilities(np.zeros((1, 32)))[0, 0], world.utility_I_T_A[0, 0]
    drawn = np.random.default_rng(5).choice(32, (40_000, 8), p=chances)
    expected = worth[drawn].max(axis=1)
    found = world._worth(world.probabilities(np.zeros((1, 32)))[:1], world.utility_I_T_A[:1])[0]
    assert found == pytest.approx(expected.mean(), abs=4 * expected.std() / 200)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_objective_learns_the_right_action_within_its_trust(worlds, learner, algorithm):
    world = worlds.middle(np.random.default_rng(6))
    recorded = learner.batch(world, rollouts_of(learner, world))
    theta = learner.train(world, algorithm, recorded, np.random.default_rng(7))
    right = int(world.utility_I_T_A[0, 0].argmax())
    assert theta[0].argmax() == right
    assert world.gain(theta) > 0.05
    still = learner.train(world, algorithm, recorded, np.random.default_rng(7), trust=1e-6)
    assert 0 < world.divergence(still, np.zeros_like(still)) < 1e-4


def test_what_has_no_signal_is_left_as_it_was(worlds, learner):
    world = worlds.middle(np.random.default_rng(8))
    nothing = world._replace(reward_I_T_A=np.zeros_like(world.reward_I_T_A), success_at=2.0)
    recorded = learner.batch(nothing, rollouts_of(learner, nothing))
    for algorithm in ALGORITHMS:
        assert not learner.train(nothing, algorithm, recorded, np.random.default_rng(9)).any()


def test_a_small_form(module, tmp_path, capfd):
    out, small = tmp_path / "selection.json", ("--seeds", "2", "--history", "2", "--worlds", "mid-binary", "costly")
    other = ("--other-trusts", "2")
    assert module("benchmarks.selection").main(["--json", "--out", str(out), *small, *other]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads(out.read_text())
    errors = result["standard_errors"]
    assert {*ALGORITHMS, "rules", "learned", "random", "oracle"} <= errors.keys() <= result.keys()
    assert all(error >= 0 for error in errors.values())
    assert result["oracle"] == 0
    assert result["random"] == pytest.approx(np.mean([result[name] for name in ALGORITHMS]))
    for name, about in result["worlds"].items():
        assert about["best"] in ALGORITHMS
        assert sum(result["group_size"]["2"]["chosen"][name].values()) == 2
    (at_two,) = result["step_size"].values()
    assert at_two["regret"].keys() == errors.keys()
    assert {"cpu", "cores"} <= result["machine"].keys()
    assert {"rules", "learned"} == result["off_policy"].keys()
    everything = module("benchmarks.__main__")
    table = everything._table("selection", result)
    assert all(figure.label in table for figure in everything.FIGURES["selection"])

"""Which rows the objectives choose and how they weigh them, by hand, by brute force and by what cannot matter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.optimize import brentq
from scipy.special import rel_entr, softmax
from trainer_given import SETTINGS, batch, rollout, turn

from resia.events import ALGORITHMS
from resia.events.errors import NoSignal
from resia.trainers.batch import Batch
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.objectives.dpo import choose_pairs
from resia.trainers.objectives.entropic import divergence, entropic_weights, solve_beta
from resia.trainers.objectives.ppo_gae import gae

GROUPED = ["grpo", "entropic", "reinforce_kl", "dpo"]


def with_rewards(groups: dict[str, list[float]]) -> Batch:
    return batch([rollout(f"{g}-{i:02}", g, r, r > 0) for g, rewards in groups.items() for i, r in enumerate(rewards)])


def advantages(algorithm: str, made: Batch, chosen=SETTINGS) -> dict[str, float]:
    """By the rollout's name; DPO's are its weights where the policy is the reference."""
    objective = OBJECTIVES[algorithm]
    selection = objective.select(made, chosen)
    if "log_ratios" in objective.needs:
        selection, _ = objective.reweigh(selection, dict.fromkeys((row.sample for row in selection.rows), 0.0), chosen)
    return {made.samples[r.sample].id: a for r, a in zip(selection.rows, selection.advantages_R, strict=True)}


def pairs(made: Batch, **changes) -> list[tuple[str, str]]:
    found = choose_pairs(made, replace(SETTINGS, **changes))
    return [(made.samples[b].id, made.samples[w].id) for b, w in found]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_that_holds_nothing_to_learn_from_is_no_signal(algorithm):
    failures = with_rewards({"x": [0.0, 0.0, 0.0], "y": [0.0, 0.0]})
    with pytest.raises(NoSignal):
        OBJECTIVES[algorithm].select(failures, SETTINGS)


@pytest.mark.parametrize("algorithm", GROUPED)
@pytest.mark.parametrize(
    ("groups", "said"),
    [({"x": [0.5], "y": [0.1]}, "has a single rollout"), ({"x": [0.5, 0.5], "y": [0.1, 0.1]}, "rewards are constant")],
)
def test_what_learns_from_contrast_says_what_it_lacks(algorithm, groups, said):
    with pytest.raises(NoSignal, match=said):
        OBJECTIVES[algorithm].select(with_rewards(groups), SETTINGS)


# -- entropic ---------------------------------------------------------------------------------------------------------


def test_entropic_weights_of_one_winner_in_eight():
    """exp(beta) solves KL = ln 2, every loser's mean of the others holds the winner, and 10.8 is cut off at 5."""
    rewards_G = np.array([1.0] + [0.0] * 7)
    beta = solve_beta(rewards_G, math.log(2), 1e6)
    weights_G = entropic_weights(rewards_G, beta)
    assert weights_G[0] == pytest.approx(10.8, abs=0.05)
    assert weights_G[0] + 1 == pytest.approx(math.exp(beta))
    np.testing.assert_allclose(weights_G[1:] + 1, 1 / ((math.exp(beta) + 6) / 7))
    selection = OBJECTIVES["entropic"].select(with_rewards({"x": rewards_G.tolist(), "y": [0.0, 1.0]}), SETTINGS)
    assert selection.advantages_R[0] == 5.0
    assert selection.capped == 2  # with two rollouts a winner weighs without bound
    assert (selection.used, selection.dropped) == (10, 0)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 1.0, 0.0, 0.0], [2.0, 2.0, -1.0, -1.0]),  # each winner against the mean of another and two losers
        ([1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, -1.0]),
        ([0.3, 0.1], [5.0, -1.0]),
    ],
)
def test_where_the_best_are_too_many_beta_is_its_cap(rewards, expected):
    made = with_rewards({"x": rewards})
    assert solve_beta(np.array(rewards), math.log(2), 1e6) == 1e6
    np.testing.assert_allclose(list(advantages("entropic", made).values()), expected, atol=1e-9)
    soft = advantages("entropic", made, replace(SETTINGS, entropic_beta_max=1e-3))
    np.testing.assert_allclose(list(soft.values()), 0.0, atol=1e-2)


# Multiples of 1/64: two rewards are equal or well apart, so that no unit or constant brings beta to its cap.
spread = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=3, max_size=12).filter(lambda r: len(set(r)) > 1)


@given(spread, st.floats(-10, 10), st.floats(0.1, 100))
def test_beta_solves_its_equation_and_the_weights_know_no_unit(rewards, constant, scale):
    rewards_G = np.array(rewards)
    beta = solve_beta(rewards_G, math.log(2), 1e6)
    ties = int((rewards_G == rewards_G.max()).sum())
    if len(rewards) / ties <= 2:
        assert beta == 1e6
        return
    assert divergence(beta, rewards_G) == pytest.approx(math.log(2), abs=1e-9)
    assert rel_entr(softmax(beta * rewards_G), 1 / len(rewards)).sum() == pytest.approx(math.log(2), abs=1e-9)
    assert beta == pytest.approx(brentq(lambda b: divergence(b, rewards_G) - math.log(2), 0, 1e6, xtol=1e-9), rel=1e-6)
    other_G = rewards_G * scale + constant
    moved_G = entropic_weights(other_G, solve_beta(other_G, math.log(2), 1e6))
    np.testing.assert_allclose(moved_G, entropic_weights(rewards_G, beta), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(-1e150, 1e150), min_size=2, max_size=6))
def test_entropic_advantages_are_bounded_for_any_rewards(rewards):
    assume(np.std(rewards, ddof=1) > 1e-6)
    found = advantages("entropic", with_rewards({"x": rewards}))
    assert all(-1 <= a <= SETTINGS.entropic_clip for a in found.values())
    ordered = [a for _, a in sorted(zip(rewards, found.values(), strict=True))]
    assert (np.diff(ordered) >= -1e-12).all()


# -- REINFORCE --------------------------------------------------------------------------------------------------------


def test_the_baseline_leaves_one_out_and_ties_stay_for_the_penalty():
    made = with_rewards({"x": [0.0, 1.0, 0.5], "y": [0.2, 0.2], "z": [0.9]})
    selection = OBJECTIVES["reinforce_kl"].select(made, SETTINGS)
    np.testing.assert_allclose(selection.advantages_R, [-0.75, 0.75, 0.0, 0.0, 0.0], atol=1e-15)
    assert (selection.used, selection.dropped, selection.normalizer) == (5, 1, 5.0)


# -- PPO --------------------------------------------------------------------------------------------------------------


def turns(rewards) -> list:
    return [turn(reward=r) for r in rewards]


def estimated(rewards: list[list[float]], values_R, **changes):
    made = batch([rollout(f"{i}", reward=9.0, turns=turns(r)) for i, r in enumerate(rewards)])
    chosen, objective = replace(SETTINGS, **changes), OBJECTIVES["ppo_gae"]
    return objective.estimate(objective.select(made, chosen), np.array(values_R), chosen)


def test_gae_by_hand():
    """Two rollouts of three turns and one; gamma 1/2, lambda 1/2; deltas 1 + 1 - 1, 0 + 2 - 2, 4 - 4 | 3 - 1."""
    found = estimated([[1.0, 0.0, 4.0], [3.0]], [1.0, 2.0, 4.0, 1.0], gamma=0.5, gae_lambda=0.5)
    deltas = [1 + 0.5 * 2 - 1, 0 + 0.5 * 4 - 2, 4 - 4]
    expected = [deltas[0] + deltas[1] / 4 + deltas[2] / 16, deltas[1] + deltas[2] / 4, deltas[2], 2.0]
    np.testing.assert_allclose(found.advantages_R, expected)
    np.testing.assert_allclose(found.returns_R, np.add(expected, [1.0, 2.0, 4.0, 1.0]))


def test_a_rollout_without_step_rewards_earns_its_own_on_the_last_turn():
    found = estimated([[0.0, 0.0], [0.0, 0.5]], [0.0] * 4, gae_lambda=1.0)
    np.testing.assert_allclose(found.advantages_R, [9.0, 9.0, 0.5, 0.5])


def test_rollouts_that_all_earn_the_same_teach_ppo_nothing():
    same = batch([rollout(f"{i}", reward=1.0, turns=turns([0.5, 0.5])) for i in range(3)])
    with pytest.raises(NoSignal, match="all 6 turns of 3 rollouts have one reward"):
        OBJECTIVES["ppo_gae"].select(same, SETTINGS)
    other = batch([rollout("0", turns=turns([1.0])), rollout("1", turns=turns([1.0, 1.0]))])
    assert OBJECTIVES["ppo_gae"].select(other, SETTINGS).used == 2


episodes = st.lists(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=5), min_size=1, max_size=4
)


@given(episodes, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_sum_of_its_definition(episodes, gamma, decay):
    made = batch([rollout(f"{i}", turns=turns([r for r, _ in e])) for i, e in enumerate(episodes)])
    rows = tuple(row for sample in made.samples for row in sample.turns)
    values_R = np.array([v for e in episodes for _, v in e])
    found, expected = gae(rows, values_R, gamma, decay), []
    for episode in episodes:
        after = [*(v for _, v in episode[1:]), 0.0]
        deltas = [r + gamma * v2 - v for (r, v), v2 in zip(episode, after, strict=True)]
        expected += [
            sum((gamma * decay) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
        ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(episodes)
def test_gae_at_its_ends_is_the_return_or_one_step(episodes):
    made = batch([rollout(f"{i}", turns=turns([r for r, _ in e])) for i, e in enumerate(episodes)])
    rows = tuple(row for sample in made.samples for row in sample.turns)
    values_R = np.array([v for e in episodes for _, v in e])
    to_go = [sum(r for r, _ in e[t:]) for e in episodes for t in range(len(e))]
    np.testing.assert_allclose(gae(rows, values_R, 1.0, 1.0) + values_R, to_go, atol=1e-12)
    np.testing.assert_allclose(gae(rows, values_R, 0.0, 0.7), [row.reward for row in rows] - values_R, atol=1e-12)


# -- DPO --------------------------------------------------------------------------------------------------------------


def test_pairs_are_of_one_group_widest_first_and_taken_in_turn():
    made = with_rewards({"x": [0.0, 0.5, 0.9], "y": [0.2, 0.1], "z": [0.4], "w": [0.3, 0.3]})
    everything = [
        ("x-02", "x-00"), ("y-00", "y-01"), ("x-01", "x-00"), ("x-02", "x-01"),
    ]  # fmt: skip
    assert pairs(made) == everything
    assert pairs(made, dpo_pairs=2) == everything[:2]
    assert pairs(made, dpo_margin=0.1) == [everything[0], everything[2], everything[3]]
    assert pairs(made, dpo_margin=0.5) == everything[:1]  # more than the margin, not equal to it
    with pytest.raises(NoSignal, match=r"by more than the margin of 0\.95"):
        pairs(made, dpo_margin=0.95)


@given(st.dictionaries(st.sampled_from("vwxyz"), spread, min_size=1, max_size=3), st.floats(0, 0.5))
def test_pairs_are_all_that_pass_the_margin(groups, margin):
    made = with_rewards(groups)
    expected = {
        (a.id, b.id)
        for a, b in itertools.permutations(made.samples, 2)
        if a.group == b.group and a.reward - b.reward > max(margin, 1e-6)
    }
    assume(expected)
    assert set(pairs(made, dpo_margin=margin, dpo_pairs=10_000)) == expected
    few = pairs(made, dpo_margin=margin, dpo_pairs=5)
    assert len(few) == min(5, len(expected))
    assert set(few) <= expected


ratios = st.lists(st.floats(-50, 50), min_size=2, max_size=6)


@given(ratios, st.floats(0.01, 5))
def test_dpo_weights_are_the_derivative_of_its_loss(values, beta):
    """By central differences on the log-ratios themselves."""
    made, chosen, objective = with_rewards({"x": [float(i) for i in range(len(values))]}), SETTINGS, OBJECTIVES["dpo"]
    chosen = replace(chosen, dpo_beta=beta)
    selection = objective.select(made, chosen)

    def loss(log_ratios) -> float:
        return objective.reweigh(selection, dict(enumerate(log_ratios)), chosen)[1]

    weighed, found = objective.reweigh(selection, dict(enumerate(values)), chosen)
    margins = [beta * (values[b] - values[w]) for b, w in selection.pairs]
    assert found == pytest.approx(np.mean([math.log1p(math.exp(-m)) for m in margins]), rel=1e-9)
    for row, weight in zip(weighed.rows, weighed.advantages_R, strict=True):
        moved = [np.array(values) for _ in range(2)]
        for sign, at in zip((1, -1), moved, strict=True):
            at[row.sample] += sign * 1e-5
        slope = (loss(moved[0]) - loss(moved[1])) / 2e-5
        assert -weight / selection.normalizer == pytest.approx(
            slope, abs=1e-6 * (1 + beta**2) + 1e-9 * abs(found) / 1e-5
        )


def test_dpo_takes_a_hopeless_margin_without_overflow():
    objective, made = OBJECTIVES["dpo"], with_rewards({"x": [0.0, 1.0]})
    weighed, loss = objective.reweigh(objective.select(made, SETTINGS), {0: 1e5, 1: -1e5}, SETTINGS)
    assert loss == pytest.approx(2e4)
    np.testing.assert_allclose(weighed.advantages_R, [-SETTINGS.dpo_beta, SETTINGS.dpo_beta])
    weighed, loss = objective.reweigh(objective.select(made, SETTINGS), {0: -1e5, 1: 1e5}, SETTINGS)
    assert (loss, *weighed.advantages_R) == (0.0, 0.0, 0.0)


# -- what cannot matter -----------------------------------------------------------------------------------------------

many = st.dictionaries(st.sampled_from("vwxyz"), spread, min_size=1, max_size=3)


@settings(deadline=None)
@pytest.mark.parametrize("algorithm", GROUPED)
@given(many, st.floats(-10, 10))
def test_a_constant_added_to_a_group_changes_no_advantage(algorithm, groups, constant):
    name, chosen = next(iter(groups)), replace(SETTINGS, dpo_pairs=10_000)
    shifted = {**groups, name: [r + constant for r in groups[name]]}
    one, two = (advantages(algorithm, with_rewards(g), chosen) for g in (groups, shifted))
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@pytest.mark.parametrize("algorithm", GROUPED)
@given(many, st.randoms(use_true_random=False))
def test_names_and_order_of_rollouts_and_groups_change_no_advantage(algorithm, groups, random):
    made, chosen = with_rewards(groups), replace(SETTINGS, dpo_pairs=10_000)
    names = dict(zip(sorted(groups), random.sample("abcdefgh", len(groups)), strict=True))
    renamed = [rollout(str(n), names[s.group], s.reward, s.success) for n, s in enumerate(made.samples)]
    random.shuffle(renamed)
    one, two = advantages(algorithm, made, chosen), advantages(algorithm, batch(renamed), chosen)
    expected = {str(n): one[s.id] for n, s in enumerate(made.samples) if s.id in one}
    assert two == pytest.approx(expected, rel=1e-9, abs=1e-12)

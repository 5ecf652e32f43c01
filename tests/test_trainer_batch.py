"""Batches, selections and packing: what is refused, what is chosen, and what the order of rollouts cannot change."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import SETTINGS, batch, random_rollouts, rollout, turn

from resia.events import ALGORITHMS
from resia.events.errors import NoSignal, TrainerError, UnknownName
from resia.trainers.batch import Batch
from resia.trainers.objectives import FEASIBLE, OBJECTIVES, objective_of
from resia.trainers.packing import cost, pack, pad, shared_prefix

GRPO, BEST = OBJECTIVES["grpo"], OBJECTIVES["best_of_n"]


def with_rewards(groups: dict[str, list[float]]) -> Batch:
    return batch([rollout(f"{g}-{i:02}", g, r, r > 0) for g, rewards in groups.items() for i, r in enumerate(rewards)])


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ([], "the batch is empty"),
        ([rollout("a"), rollout("a")], "rollout a is in the batch twice"),
        ([rollout("a", reward=float("nan"))], "rollout a has reward nan"),
        ([rollout("a", reward=float("inf"))], "rollout a has reward inf"),
        ([rollout("a", temperature=0.0)], "rollout a was sampled at temperature 0.0"),
        ([rollout("a", turns=[])], "rollout a has no turn"),
        ([rollout("a", turns=[turn(completion=())])], "3 prompt and 0 completion tokens"),
        ([rollout("a", turns=[turn(prompt=())])], "0 prompt and 2 completion tokens"),
        ([rollout("a", turns=[turn(logprobs=[-1.0])])], "1 log-probabilities for 2 completion tokens"),
        ([rollout("a", turns=[turn(logprobs=[-1.0, float("-inf")])])], "log-probability that is not a finite"),
        ([rollout("a", turns=[turn(logprobs=[-1.0, 0.5])])], "log-probability that is not a finite"),
        ([rollout("a", turns=[turn(), turn(prompt=[1] * 127)])], "turn 1 of rollout a is 129 tokens long"),
        ([rollout("a", turns=[turn(reward=float("nan"))])], "turn 0 of rollout a has reward nan"),
    ],
)
def test_what_no_gradient_can_come_from_is_refused(rollouts, said):
    with pytest.raises(TrainerError, match=said) as raised:
        batch(rollouts)
    assert raised.value.step == -1


@pytest.mark.parametrize(
    ("objective", "groups", "said"),
    [
        (GRPO, {"x": [0.5, 0.5], "y": [0.1, 0.1, 0.1]}, "rewards are constant in each of the 2 groups"),
        (GRPO, {"x": [0.5], "y": [0.1]}, "every one of the 2 groups has a single rollout"),
        (BEST, {"x": [0.0, 0.0], "y": [0.0]}, "none of the 3 rollouts is a success"),
    ],
)
def test_a_batch_without_a_signal_is_refused(objective, groups, said):
    with pytest.raises(NoSignal, match=said):
        objective.select(with_rewards(groups), SETTINGS)


def test_an_algorithm_that_is_not_built_is_named_with_the_nearest():
    with pytest.raises(UnknownName, match="unknown training algorithm 'grp': did you mean grpo"):
        objective_of("grp")
    assert set(FEASIBLE) == set(ALGORITHMS)


def test_grpo_advantages_by_hand():
    made = with_rewards({"x": [0.0, 1.0, 0.5], "y": [0.2, 0.2], "z": [0.9]})
    chosen = GRPO.select(made, SETTINGS)
    expected = np.array([-0.5, 0.5, 0.0]) / (0.5 + 1e-4)  # the unbiased deviation of 0, 1, 1/2 is 1/2
    np.testing.assert_allclose(chosen.advantages_R, expected, rtol=1e-12)
    assert (chosen.used, chosen.dropped, chosen.normalizer) == (3, 3, 6.0)
    plain = GRPO.select(made, replace(SETTINGS, dr_grpo=True))
    np.testing.assert_allclose(plain.advantages_R, [-0.5, 0.5, 0.0], atol=1e-15)


def test_dr_grpo_divides_by_rollouts_times_the_longest():
    made = batch([rollout("a", reward=0.0, turns=[turn(), turn()]), rollout("b", reward=1.0)])
    chosen = GRPO.select(made, replace(SETTINGS, dr_grpo=True))
    assert chosen.normalizer == 2 * 4
    np.testing.assert_allclose(chosen.advantages_R, [-0.5, -0.5, 0.5])  # a turn has its rollout's advantage


def test_best_of_n_keeps_the_best_successes_shortest_first():
    long = [turn(completion=(1, 2, 3))]
    made = batch(
        [
            rollout("a", reward=0.9, success=False),
            rollout("b", reward=0.8, success=True, failure="truncation"),
            rollout("c", reward=0.5, success=True, turns=long),
            rollout("e", reward=0.5, success=True),
            rollout("d", reward=0.5, success=True),
            rollout("f", reward=0.6, success=True),
        ]
    )

    def kept(top: int) -> set[str]:
        rows = BEST.select(made, replace(SETTINGS, bon_top=top)).rows
        return {made.samples[row.sample].id for row in rows}

    assert [kept(top) for top in (1, 2, 3, 4)] == [{"f"}, {"d", "f"}, {"d", "e", "f"}, {"c", "d", "e", "f"}]
    assert kept(99) == kept(4)


rewards = st.lists(st.floats(0, 1, width=16), min_size=2, max_size=6)
many = st.dictionaries(st.sampled_from("vwxyz"), rewards, min_size=1, max_size=4).filter(
    lambda groups: any(np.std(r) > 1e-3 for r in groups.values())
)


def advantages(groups: dict[str, list[float]], settings=SETTINGS) -> dict[str, float]:
    made = with_rewards(groups)
    chosen = GRPO.select(made, settings)
    return {made.samples[row.sample].id: a for row, a in zip(chosen.rows, chosen.advantages_R, strict=True)}


@given(many, st.floats(-10, 10), st.booleans())
def test_a_constant_added_to_a_group_changes_no_advantage(groups, constant, dr):
    settings = replace(SETTINGS, dr_grpo=dr)
    name = next(iter(groups))
    shifted = {**groups, name: [r + constant for r in groups[name]]}
    assert advantages(shifted, settings) == pytest.approx(advantages(groups, settings), abs=1e-8)


@given(many)
def test_advantages_sum_to_zero_in_a_group_and_have_unit_spread(groups):
    found = advantages(groups)
    for name, values in groups.items():
        own = [a for key, a in found.items() if key.startswith(name)]
        if own:
            std = np.std(values, ddof=1)
            assert sum(own) == pytest.approx(0, abs=1e-9)
            assert np.std(own, ddof=1) == pytest.approx(std / (std + SETTINGS.advantage_epsilon), rel=1e-9)


@given(many, st.randoms(use_true_random=False))
def test_a_selection_does_not_depend_on_the_order_of_rollouts(groups, random):
    made = with_rewards(groups)
    given_in = [rollout(s.id, s.group, s.reward, s.success) for s in made.samples]
    random.shuffle(given_in)
    assert batch(given_in) == made
    one, other = GRPO.select(made, SETTINGS), GRPO.select(batch(given_in), SETTINGS)
    assert one.rows == other.rows
    np.testing.assert_array_equal(one.advantages_R, other.advantages_R)


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=7)


@given(prompts, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_covers_every_row_once_within_the_budget(prompts, budget, seed):
    rng = np.random.default_rng(seed)
    turns = [turn(p, rng.integers(0, 2, rng.integers(1, 5)).tolist()) for p in prompts]
    rows = [row for sample in batch([rollout(f"{i}", turns=[t]) for i, t in enumerate(turns)]).samples
            for row in sample.turns]  # fmt: skip
    packs = pack(rows, budget)
    assert sorted(i for one in packs for i in one) == list(range(len(rows)))
    for one in packs:
        members = [rows[i] for i in one]
        padded = pad(members)
        assert cost(members) == len(padded.prefix_P) + padded.inputs_B_S.size
        assert cost(members) <= budget or len(one) == 1
        for b, row in enumerate(members):
            whole = (*padded.prefix_P.tolist(), *padded.inputs_B_S[b].tolist())
            text = (*row.prompt_ids, *row.completion_ids)
            assert whole[: len(text) - 1] == text[:-1]
            for t, token in enumerate(row.completion_ids):
                assert text[len(padded.prefix_P) + padded.index_B_T[b, t] + 1] == token
                assert padded.mask_B_T[b, t]
                assert padded.tokens_B_T[b, t] == token
            assert padded.mask_B_T[b].sum() == len(row.completion_ids)


def test_groups_that_share_a_long_prompt_are_packed_apart_from_each_other():
    made = batch(random_rollouts(0, groups=1, size=6) + [
        rollout(f"z{i}", turns=[turn([99] * 40, [1, 2, 3])]) for i in range(6)
    ])  # fmt: skip
    rows = [row for sample in made.samples for row in sample.turns]
    packs = pack(rows, 4096)
    assert len(packs) == 2
    assert {shared_prefix([rows[i] for i in one]) for one in packs} == {11, 39}


def test_choosing_rows_loads_no_torch():
    code = "import sys, resia.trainers.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Batches, selections and packing: what is refused, what is chosen, and what the order of rollouts cannot change."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import SETTINGS, batch, rollout, turn

from resia.events import ALGORITHMS
from resia.events.errors import NoSignal, TrainerError, UnknownName
from resia.trainers import layout
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


def test_best_of_n_clones_no_try_that_failed_on_the_way():
    tried = replace(turn(completion=(7, 7, 7)), failure="parse")
    made = batch([rollout("a", reward=0.5, success=True, turns=[tried, turn(completion=(1, 2))])])
    chosen = BEST.select(made, SETTINGS)
    assert [row.completion_ids for row in chosen.rows] == [(1, 2)]
    assert (chosen.normalizer, chosen.used, chosen.advantages_R.tolist()) == (2.0, 1, [1.0])


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


def rows_with(prompts: list, lengths: list[int]) -> list:
    turns = [turn(p, [i % 2] * n) for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))]
    made = batch([rollout(f"{i:03}", turns=[t]) for i, t in enumerate(turns)])
    return [row for sample in made.samples for row in sample.turns]


@given(prompts, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_covers_every_row_once_within_the_budget(prompts, budget, seed):
    rows = rows_with(prompts, np.random.default_rng(seed).integers(1, 5, len(prompts)).tolist())
    packs = pack(rows, budget)
    assert sorted(i for one in packs for i in one) == list(range(len(rows)))
    for one in packs:
        members = [rows[i] for i in one]
        padded = pad(members)
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


@given(prompts, st.integers(1, 60))
def test_rows_cost_no_more_together_than_apart(prompts, budget):
    rows = rows_with(prompts, [1 + i % 3 for i in range(len(prompts))])
    together = [rows[i] for one in pack(rows, 10_000) for i in one]
    parts = [[rows[i] for i in one] for one in pack(rows, budget)]
    assert cost(together) <= sum(map(cost, parts)) <= sum(cost([row]) for row in rows)
    # Each first token of a prompt counts once, each last one and each completion token in every row.
    shared = {row.prompt_ids[: n + 1] for row in rows for n in range(len(row.prompt_ids) - 1)}
    assert cost(together) == len(shared) + sum(len(row.completion_ids) for row in rows)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=9),
    st.lists(st.integers(1, 12), min_size=9, max_size=9),
    st.integers(1, 20),
)
def test_a_layout_has_every_token_after_its_own_prefix(prompts, lengths, segment_cost):
    """Followed from its place up to the root, every input of every row reads the row up to there."""
    rows = rows_with(prompts, lengths[: len(prompts)])
    padded = pad(rows)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layout, "SEGMENT_COST", segment_cost)
        found = layout.arrange(padded)
    assert sum(one.rows * one.length for one in found.segments) == len(found.ids_N) == len(found.positions_N)
    starts = np.cumsum([0, *(one.rows * one.length for one in found.segments)])

    def read(place: int) -> list[int]:
        number = int(np.searchsorted(starts, place, side="right")) - 1
        one = found.segments[number]
        inside = (place - starts[number]) % one.length
        own = found.ids_N[place - inside : place + 1].tolist()
        if one.parent < 0:
            assert one.past == 0
            return own
        before = found.segments[one.parent]
        assert before.rows == 1
        assert one.past == before.past + before.length
        return read(int(starts[one.parent + 1]) - 1) + own

    for b, row in enumerate(rows):
        text = (*row.prompt_ids, *row.completion_ids)
        for s in range(len(text) - 1 - len(padded.prefix_P)):
            place = int(found.place_B_S[b, s])
            upto = text[: len(padded.prefix_P) + s + 1]
            assert read(place) == list(upto)
            assert found.positions_N[place] == len(upto) - 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_rectangles_pad_no_more_than_any_two_cuts(lengths):
    lengths = sorted(lengths)

    def price(ranges: list[tuple[int, int]]) -> int:
        return sum((last - first) * lengths[last - 1] + layout.SEGMENT_COST for first, last in ranges)

    found, end = layout.rectangles(lengths), len(lengths)
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == end
    for i in range(1, end):
        assert price(found) <= min(price([(0, end)]), price([(0, i), (i, end)]))


def test_a_system_prompt_and_the_prompts_of_its_items_are_run_once():
    """One system prompt, two items of four rollouts each: both levels are shared, and the rest is hardly padded."""
    system, items = [9] * 50, [[1] * 30, [2] * 30]
    rows = rows_with([system + item for item in items for _ in range(4)], [2, 12, 12, 40] * 2)
    packs = pack(rows, 4096)
    assert len(packs) == 1
    whole = [rows[i] for i in packs[0]]
    found = layout.arrange(pad(whole))
    assert shared_prefix(whole) == 50
    assert [(one.rows, one.length) for one in found.segments if one.parent < 1 and one.rows == 1] == [
        (1, 50),
        (1, 30),
        (1, 30),
    ]
    assert cost(whole) == 50 + 2 * 29 + 2 * (2 + 12 + 12 + 40)
    assert len(found.ids_N) - cost(whole) <= 2 * layout.SEGMENT_COST
    assert len(found.ids_N) < 0.35 * sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)


def test_choosing_rows_loads_no_torch():
    code = "import sys, resia.trainers.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

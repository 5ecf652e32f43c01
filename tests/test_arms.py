"""Arms side by side: which runs are asked for, how they are paired, and what a table says of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from histories import OPERATORS, World, play
from histories import run_request as given_request
from resia.agents.crossed import crossed
from resia.agents.gate import bca
from resia.agents.taskwork import item_means
from resia.events import LoopSettings, RunSettings
from resia.events.errors import UnknownName, UsageError
from resia.runtime import arms_view
from resia.runtime.arms import Arms, asked, lines, settings_of

SEARCHED = World(operators={**OPERATORS, "random-search": 0.3, "best-of-n": 0.1}, noise=0.02)
BASE = RunSettings(seed=3)


# -- what is asked for -----------------------------------------------------------------------------------------------


def test_there_is_a_run_for_each_arm_and_seed_seed_by_seed():
    found = asked("H,W+H", 2, None, BASE, "mine")
    assert [(c.arm, c.seed, c.run) for c in found.cells] == [
        ("H", 3, "mine-h-3"),
        ("W+H", 3, "mine-wh-3"),
        ("H", 4, "mine-h-4"),
        ("W+H", 4, "mine-wh-4"),
    ]
    assert found.reference == "H"


def test_names_follow_from_the_settings_but_seed_and_mode():
    def names(**changes):
        return {c.run for c in asked("H,random", 2, None, RunSettings(**changes), None).cells}

    assert names() == names(loop=LoopSettings(mode="H"))
    assert not names() & names(loop=LoopSettings(token_budget=7))
    assert len(names() & names(seed=1)) == 2  # seeds 1 of both


def test_an_arm_that_trains_nothing_has_no_algorithm():
    base = RunSettings(algorithm="grpo")
    assert [settings_of(base, arm, 0).algorithm for arm in ("H", "W", "random")] == [None, "grpo", None]


@pytest.mark.parametrize(
    ("arms", "seeds", "reference", "words"),
    [
        ("H,X", 1, None, "unknown arm 'X'"),
        ("H", 1, None, "--arms has 1 arm and a comparison needs two"),
        ("", 1, None, "--arms has 0 arm"),
        ("H,W,H", 1, None, "arm H is in --arms twice"),
        ("H,W", 0, None, "--seeds is 0: give the number of runs an arm, from 1"),
        ("H,W", 1, "random", "unknown reference (one of --arms) 'random'"),
    ],
)
def test_what_cannot_be_compared_is_named(arms, seeds, reference, words):
    with pytest.raises((UsageError, UnknownName)) as caught:
        asked(arms, seeds, reference, BASE, None)
    assert words in str(caught.value)


# -- how they are paired ---------------------------------------------------------------------------------------------


def test_one_seed_is_a_bootstrap_over_items():
    values = np.random.default_rng(0).normal(0.1, 0.2, 40)
    low, high = crossed(values[None, :], 0.025, 1)
    other = bca(values, 0.025, 1)
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.02)


def test_seeds_that_repeat_the_same_differences_make_the_interval_no_narrower():
    values = np.random.default_rng(0).normal(0.1, 0.2, 40)
    one, ten = crossed(values[None, :], 0.025, 1), crossed(np.tile(values, (10, 1)), 0.025, 1)
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.05)


def test_the_width_is_that_of_both_sources_of_variance():
    rng = np.random.default_rng(0)
    seeds, items = 200, 300
    values = rng.normal(0, 0.5, (seeds, 1)) + rng.normal(0, 0.8, (1, items))
    low, high = crossed(values, 0.025, 1)
    deviation = np.sqrt(values.mean(1).var() / seeds + values.mean(0).var() / items)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1)])
def test_equal_differences_are_a_point(shape):
    assert crossed(np.full(shape, 0.25), 0.025, 1) == pytest.approx((0.25, 0.25))


# -- what the lines say ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> tuple[Arms, dict]:
    found = asked("H,random,best-of-n", 2, "H", given_request(token_budget=9_000).settings, "x")
    states = {}
    for cell in found.cells:
        request = given_request(seed=cell.seed, mode=cell.arm, token_budget=9_000)
        states[cell.run] = play(request, SEARCHED, run=cell.run).state
    return found, states


def test_differences_are_of_the_same_items_and_seeds(played):
    arms, states = played
    reference, searched, _ = lines(arms, states)
    assert (reference.validation_effect, reference.test_effect) == (None, None)
    both = [
        item_means(of_champion(states[f"x-{arm}-{seed}"]), "validation") for seed in (0, 1) for arm in ("random", "h")
    ]
    changes = [new[item] - old[item] for new, old in zip(both[::2], both[1::2], strict=True) for item in new]
    assert searched.validation_effect.mean == pytest.approx(np.mean(changes))
    assert (searched.validation_effect.seeds, searched.validation_effect.items) == (2, 12)
    assert (searched.test_effect.seeds, searched.test_effect.items) == (2, 2)
    assert searched.validation_effect.low <= searched.validation_effect.mean <= searched.validation_effect.high


def of_champion(state):
    return state.evaluations[state.champion.evaluation]


def test_a_line_counts_tokens_before_the_sealed_test_and_all_of_them(played):
    arms, states = played
    for line in lines(arms, states):
        held = [states[run] for run in line.runs]
        assert line.all_tokens == sum(state.ledger.tokens for state in held)
        tested = [state.cycles[state.iteration].tokens for state in held]
        assert line.tokens == round((line.all_tokens - sum(tested)) / 2)
        assert (line.failed, line.coverage, line.token_budget) == (0, 1.0, 9_000)


def test_a_lost_item_is_left_out_of_the_pairs_and_lowers_the_coverage(played):
    arms, states = played
    lossy = SEARCHED._replace(slot_fails=lambda event, slot: slot.item == "v03" and slot.split == "validation")
    other = play(given_request(seed=0, mode="random", token_budget=9_000), lossy, run="x-random-0").state
    _, searched, _ = lines(arms, {**states, "x-random-0": other})
    assert searched.validation_effect.items == 11
    assert searched.coverage == pytest.approx(11 / 12)


def test_a_run_that_failed_is_counted_and_says_why(played):
    arms, states = played
    broken = play(given_request(seed=1, mode="random"), World(draft_fails=True), run="x-random-1").state
    _, searched, _ = lines(arms, {**states, "x-random-1": broken})
    assert (searched.failed, searched.validation_effect.seeds) == (1, 1)
    assert searched.notes[-1] == "seed 1: no harness could be drafted: the store is full"


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (140, 1)])
def test_the_table_fits_a_terminal(played, monkeypatch, width, tables):
    arms, states = played
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console(width=width, record=True, file=io.StringIO())
    parts = arms_view._parts(arms, lines(arms, states))
    for part in parts[1 : 1 + tables]:
        console.print(part)
    text = console.export_text()
    assert text.count("arm ") == tables
    assert "…" not in text
    assert "reference" in text

"""Every published rule can fire, no masked algorithm is ever chosen, and the worked example of the docs holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.agents.landscape import expected_informative
from resia.agents.selection import (
    GRPO_FORECAST,
    choose_algorithm,
    choose_lever,
    data_suffice,
    sure_pairs,
)
from resia.events import ALGORITHMS, Landscape, LoopSettings, SelectionSettings

SETTINGS = SelectionSettings()
DOC = Path(__file__).parent.parent / "docs" / "selection.md"
MIDDLING = Landscape(
    items=32,
    group_size=8,
    reward_mean=0.3,
    reward_density=0.2,
    horizon=1.0,
    p_pos=0.3,
    successes=77,
    informative=0.1,
    forecast=0.4,
    distinct_rewards=2.0,
    clustering=0.2,
    skew=None,
    tail=None,
    rollout_cost=4.0,
    afford=20.0,
    regression_risk=0.1,
    format_failures=0.1,
    headroom=0.3,
    ess=1.0,
    kl_per_token=0.0,
)


def changed(**changes) -> Landscape:
    return msgspec.structs.replace(MIDDLING, **changes)


def choose(landscape=MIDDLING, **changes):
    given = {
        "built": ALGORITHMS,
        "ordinal": False,
        "objective": "mean",
        "failed": (),
        "rollouts_fresh": False,
        "requested": None,
    }
    return choose_algorithm(landscape, SETTINGS, **(given | changes))


SPARSE = changed(p_pos=0.04, informative=0.1, successes=10)


@pytest.mark.parametrize(
    ("landscape", "context", "algorithm", "rule"),
    [
        (changed(informative=0.5), {"ordinal": True}, "dpo", "1-dpo"),
        (SPARSE, {}, "best_of_n", "2-best-of-n"),
        (changed(skew=1.2, distinct_rewards=3.0), {}, "entropic", "3-entropic"),
        (changed(tail=3.5, distinct_rewards=3.0), {}, "entropic", "3-entropic"),
        (changed(distinct_rewards=3.0), {"objective": "max"}, "entropic", "3-entropic"),
        (changed(regression_risk=0.31), {}, "reinforce_kl", "4-reinforce-kl"),
        (changed(reward_density=0.3, horizon=3.0), {}, "ppo_gae", "5-ppo-gae"),
        (changed(informative=0.15), {}, "grpo", "6-grpo"),
        (MIDDLING, {}, "reinforce_kl", "7-reinforce-kl"),
        (changed(informative=0.5, afford=3.9), {}, "reinforce_kl", "7-reinforce-kl"),
        (MIDDLING, {"built": ("grpo", "best_of_n")}, "grpo", "8-fallback"),
        (changed(informative=0.0), {"built": ("grpo", "best_of_n")}, "best_of_n", "8-fallback"),
        (changed(successes=7), {"built": ("grpo", "best_of_n")}, None, "9-none"),
        (MIDDLING, {"requested": "entropic"}, "entropic", "0-requested"),
        (changed(informative=0.0), {"requested": "entropic"}, None, "9-none"),
    ],
)
def test_every_rule_fires(landscape, context, algorithm, rule):
    choice = choose(landscape, **context)
    assert (choice.algorithm, choice.rule) == (algorithm, f"select-algorithm/1:{rule}")


@pytest.mark.parametrize(
    ("landscape", "context", "algorithm", "reason"),
    [
        (MIDDLING, {"built": ("grpo",)}, "dpo", "not built"),
        (MIDDLING, {"requested": "dpo"}, "grpo", "the run asks for dpo"),
        (MIDDLING, {"failed": ("grpo",)}, "grpo", "failed on this champion, and the rollouts are the same"),
        (changed(group_size=3), {}, "grpo", "needs 4 rollouts an item, has 3"),
        (changed(group_size=3), {}, "entropic", "needs 4 rollouts an item, has 3"),
        (changed(group_size=1), {}, "reinforce_kl", "needs 2 rollouts an item, has 1"),
        (changed(informative=0.0), {}, "entropic", "every group is tied, so every advantage is 0"),
        (changed(informative=0.0), {}, "reinforce_kl", "every group is tied, so every advantage is 0"),
        (changed(successes=7), {}, "best_of_n", "needs 8 successes, has 7"),
        (MIDDLING, {}, "dpo", "needs 64 pairs, is sure of 21"),
        (changed(ess=0.4), {}, "ppo_gae", "needs fresh rollouts: ess 0.4 < 0.5"),
        (changed(kl_per_token=0.02), {}, "grpo", "needs fresh rollouts: KL a token 0.02 > 0.01"),
    ],
)
def test_every_mask_says_why(landscape, context, algorithm, reason):
    assert choose(landscape, **context).masks[algorithm] == reason


def test_fresh_rollouts_lift_the_masks_of_failure_and_staleness():
    stale = changed(ess=0.1, kl_per_token=1.0, informative=0.4)
    assert choose(stale, failed=("grpo",)).algorithm == "best_of_n"
    assert choose(stale, failed=("grpo",), rollouts_fresh=True).algorithm == "grpo"


def test_a_masked_rule_passes_to_the_next():
    skewed = changed(skew=2.0, distinct_rewards=5.0, informative=0.5)
    assert choose(skewed).rule.endswith("3-entropic")
    assert choose(skewed, failed=("entropic",)).rule.endswith("6-grpo")


def test_group_size_is_raised_until_the_forecast_reaches_its_share():
    """One success in fifty, no clustering: 1 - 0.98^G reaches 0.3 between 16 and 32."""
    rare = changed(p_pos=0.02, successes=5, informative=0.16, forecast=0.15, clustering=0.0)
    assert 1 - 0.98**16 < GRPO_FORECAST < 1 - 0.98**32
    assert choose(rare).group_size == 32
    assert choose(changed(informative=0.16, forecast=0.35)).group_size == 8
    assert choose(changed(informative=0.4, forecast=0.1)).group_size == 8
    clustered = changed(informative=0.16, forecast=0.1, clustering=0.95)
    assert choose(clustered).group_size == 8  # no group size helps
    assert choose(MIDDLING).group_size == 2  # REINFORCE+KL
    assert choose(SPARSE).group_size is None


def test_sure_pairs_counts_the_least_that_unequal_groups_hold():
    assert sure_pairs(changed(items=10, group_size=8, informative=0.3)) == 3 * 7


share = st.floats(0, 1)
landscapes = st.builds(
    Landscape,
    items=st.integers(0, 64),
    group_size=st.integers(0, 16),
    reward_mean=share,
    reward_density=share,
    horizon=st.floats(0, 8),
    p_pos=share,
    successes=st.integers(0, 40),
    informative=share,
    forecast=share,
    distinct_rewards=st.floats(0, 6),
    clustering=st.none() | share,
    skew=st.none() | st.floats(-3, 3),
    tail=st.none() | st.floats(0, 6),
    rollout_cost=st.floats(0, 100),
    afford=st.floats(0, 10),
    regression_risk=share,
    format_failures=share,
    headroom=share,
    ess=share,
    kl_per_token=st.floats(0, 0.02),
)
names = st.sets(st.sampled_from(ALGORITHMS))


@settings(deadline=None)
@given(landscapes, names, names, st.booleans(), st.booleans(), st.sampled_from((None, *ALGORITHMS)))
def test_what_is_chosen_is_never_masked_and_every_other_has_a_reason(land, built, failed, ordinal, fresh, requested):
    choice = choose(land, built=built, failed=failed, ordinal=ordinal, rollouts_fresh=fresh, requested=requested)
    assert choice.masks.keys() | choice.scores.keys() == set(ALGORITHMS)
    assert not choice.masks.keys() & choice.scores.keys()
    assert choice.propensities.keys() == choice.scores.keys()
    assert all(choice.masks.values())
    assert choice.reason
    if choice.algorithm is None:
        assert not any(choice.propensities.values())
        return
    assert choice.algorithm in built
    assert choice.algorithm not in choice.masks
    assert choice.propensities == {n: float(n == choice.algorithm) for n in choice.scores}
    if requested is not None:
        assert choice.algorithm == requested


def pull(choice=None, mode="W+H", **changes):
    given = {
        "failed_edits": 0,
        "failed_trainings": 0,
        "untried_edit": True,
        "format_failures": 0.0,
        "data_suffice": True,
        "choice": choice or choose(),
        "iterations_left": 5,
        "tokens_left": 1000,
    }
    return choose_lever(LoopSettings(mode=mode), SETTINGS, **(given | changes))


@pytest.mark.parametrize(
    ("changes", "action", "rule"),
    [
        ({}, "edit_harness", "1-edit-harness"),
        ({"failed_edits": 2}, "edit_harness", "1-edit-harness"),
        ({"failed_edits": 3}, "train_weights", "2-train-weights"),
        ({"failed_edits": 3, "format_failures": 0.3}, "edit_harness", "1-edit-harness"),
        ({"failed_edits": 6, "format_failures": 0.3}, "train_weights", "2-train-weights"),
        ({"untried_edit": False}, "train_weights", "2-train-weights"),
        ({"mode": "W"}, "train_weights", "2-train-weights"),
        ({"mode": "H", "failed_edits": 3}, "stop", "3-stop"),
        ({"mode": "W", "failed_trainings": 2}, "stop", "3-stop"),
        ({"mode": "W", "data_suffice": False}, "stop", "3-stop"),
        ({"mode": "W", "choice": choose(built=())}, "stop", "3-stop"),
        ({"iterations_left": 0}, "stop", "0-budget"),
        ({"tokens_left": 0}, "stop", "0-budget"),
    ],
)
def test_levers(changes, action, rule):
    lever = pull(**changes)
    assert (lever.action, lever.rule) == (action, f"select-lever/1:{rule}")
    assert lever.action not in lever.masks
    assert action != "stop" or lever.masks.keys() == {"edit_harness", "train_weights"}


def test_a_stop_says_why_neither_lever_was_left():
    lever = pull(mode="H", failed_edits=3)
    assert lever.reason == "no edit: 3 failed edits reach the patience of 3; no training: mode H freezes the weights"


def test_data_suffice():
    assert data_suffice(changed(informative=0.01, successes=0), SETTINGS)
    assert data_suffice(changed(informative=0.0, successes=8), SETTINGS)
    assert not data_suffice(changed(informative=0.0, successes=7), SETTINGS)


def test_the_worked_example_of_the_docs():
    """docs/selection.md quotes the rule, the reason, the masks and the group size of this landscape."""
    land = changed(p_pos=0.06, successes=15, informative=0.19, forecast=0.2, clustering=0.3, afford=12.0)
    choice = choose(land, built=("grpo", "best_of_n"))
    text = DOC.read_text()
    assert f"`{choice.rule}`" in text
    assert f'"{choice.reason}"' in text
    assert f"G = {choice.group_size}" in text
    assert all(f"| `{name}` | {why} |" in text for name, why in choice.masks.items())
    expected = [expected_informative(land.p_pos, land.clustering, g) for g in (8, 16, 32)]
    quoted = "{:.2f} informative groups at 8 rollouts, {:.2f} at 16 and {:.2f} at 32".format(*expected)
    assert quoted in " ".join(text.split())
    lever = pull(choice, failed_edits=3)
    assert f"`{lever.rule}`" in text
    assert f'"{lever.reason}"' in text

"""Features of the reward landscape against formulas written out by hand, and their invariances."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.agents.landscape import (
    expected_informative,
    intraclass,
    measure,
    pass_at,
    regression_risk,
    shape,
    skewness,
    tail_ratio,
)
from resia.events import Blob, Landscape, RolloutRecorded

BLOB = Blob("a" * 64, 3)


def rollout(item="i", reward=0.0, success=False, steps=(0.0,), failure=None, tokens=(10, 5), index=0, split="search"):
    return RolloutRecorded(
        evaluation="e",
        purpose="candidate",
        round=0,
        split=split,
        item=item,
        index=index,
        seed=index,
        greedy=False,
        reward=reward,
        success=success,
        failure=failure,
        detail="",
        metrics={},
        answer="",
        step_rewards=steps,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        trajectory=BLOB,
    )


def scape(rollouts, **changes) -> Landscape:
    given = {
        "token_budget_left": 9600,
        "update_tokens": 120,
        "ess": 1.0,
        "kl_per_token": 0.0,
        "weight_trials": (0, 0),
        "seed": 7,
    }
    return measure(rollouts, **(given | changes))


EXAMPLE = [
    *(rollout("a", r, r > 0.5, (0.0, r), None, (20, 10), i) for i, r in enumerate((1.0, 1.0, 1.0, 0.0))),
    *(rollout("b", r, r > 0.5, (0.0, r), None, (20, 10), i) for i, r in enumerate((0.6, 0.2, 0.2, 0.0))),
    rollout("c", 0.0, False, (), "parse", (20, 10), 0),
    *(rollout("c", 0.0, False, (0.0,), "wrong", (20, 10), i) for i in (1, 2, 3)),
]


def test_hand_computed_features():
    """Three items x 4 rollouts, successes 3, 1, 0."""
    found = scape(EXAMPLE)
    assert (found.items, found.group_size, found.successes) == (3, 4, 4)
    assert found.reward_mean == pytest.approx((0.75 + 0.25 + 0.0) / 3)
    assert found.reward_density == pytest.approx(6 * 0.5 / 12)  # six rollouts reward one of two steps
    assert found.horizon == 2.0
    assert found.p_pos == pytest.approx(4 / 12)
    assert found.informative == pytest.approx(2 / 3)
    assert found.forecast == pytest.approx(2 * (1 - 0.75**4 - 0.25**4) / 3)
    assert found.distinct_rewards == 2.0  # of 2, 3 and 1
    assert found.format_failures == pytest.approx(1 / 8)  # eight rollouts without success, one unparsed
    assert found.rollout_cost == pytest.approx(3 * 8 * 30 / 120)
    assert found.afford == pytest.approx(9600 / 720)
    assert found.regression_risk == pytest.approx(0.1)
    # k = min(8, 4) = 4: pass@4 is 1, 1, 0.
    assert found.headroom == pytest.approx((1 - 0.75 + 1 - 0.25) / 3)
    assert (found.skew, found.tail) == (None, None)  # 12 rollouts
    # MSB = 4((3/4-1/3)^2 + (1/4-1/3)^2 + (1/3)^2)/2, MSW = (3/4 + 3/4)/9, n0 = 4
    between, within = 2 * ((5 / 12) ** 2 + (1 / 12) ** 2 + (1 / 3) ** 2), 1.5 / 9
    assert found.clustering == pytest.approx((between - within) / (between + 3 * within))


def test_of_nothing_every_number_is_finite():
    found = scape([])
    assert (found.items, found.group_size, found.p_pos, found.horizon, found.clustering) == (0, 0, 0.0, 0.0, None)
    assert found.afford == 9600.0


def test_validation_rollouts_and_infinite_numbers_are_refused():
    with pytest.raises(ValueError, match="item 'v' is of split 'validation'"):
        scape([rollout("v", split="validation")])
    with pytest.raises(ValueError, match="not finite"):
        scape([rollout("i", math.nan)])
    with pytest.raises(ValueError, match="ess"):
        scape([], ess=math.inf)


def test_clustering_ends():
    assert intraclass([(4, 4), (4, 0)]) == 1.0
    assert intraclass([(4, 2), (4, 2)]) == 0.0  # less spread between items than chance would give
    assert intraclass([(4, 0), (4, 0)]) is None
    assert intraclass([(4, 2)]) is None
    assert intraclass([(1, 1), (1, 0)]) is None


@settings(deadline=None)
@given(st.lists(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=8))
def test_clustering_matches_analysis_of_variance(tallies):
    """Sums of squares over the outcomes themselves, in exact fractions."""
    found = intraclass(tallies)
    groups = [[1] * c + [0] * (n - c) for n, c in tallies]
    flat = [y for g in groups for y in g]
    k, total = len(groups), len(flat)
    if k < 2 or total == k or len(set(flat)) == 1:
        assert found is None
        return
    grand = Fraction(sum(flat), total)
    means = [Fraction(sum(g), len(g)) for g in groups]
    msb = sum(len(g) * (m - grand) ** 2 for g, m in zip(groups, means, strict=True)) / (k - 1)
    msw = sum((y - m) ** 2 for g, m in zip(groups, means, strict=True) for y in g) / Fraction(total - k)
    size = (total - Fraction(sum(len(g) ** 2 for g in groups), total)) / (k - 1)
    spread = msb + (size - 1) * msw
    assert found == pytest.approx(float(min(max((msb - msw) / spread, 0), 1))), tallies


def test_pass_at_k_averages_over_subsets():
    """Of 4 rollouts with 1 success, half of the pairs hold it."""
    assert pass_at(4, 1, 2) == pytest.approx(0.5)
    assert pass_at(4, 1, 1) == pytest.approx(0.25)
    assert pass_at(4, 0, 8) == 0.0
    assert pass_at(4, 4, 2) == 1.0


def test_regression_risk_is_the_posterior_mean():
    assert regression_risk(0, 0) == pytest.approx(0.1)
    assert regression_risk(2, 1) == pytest.approx(2 / 13)
    assert regression_risk(0, 3) == pytest.approx(4 / 13)  # three losses in a row cross 0.3


def test_expected_informative_against_its_ends_and_an_integral():
    assert expected_informative(0.3, 0.0, 4) == pytest.approx(1 - 0.3**4 - 0.7**4)
    assert expected_informative(0.3, None, 4) == expected_informative(0.3, 0.0, 4)
    assert expected_informative(0.3, 1.0, 4) == 0.0
    assert expected_informative(0.0, 0.2, 64) == 0.0
    # rho = 1/4: a + b = 3, p = 1/3: a = 1, b = 2, density 2 (1 - x); E[x^3] = 1/10, E[(1 - x)^3] = 2/5.
    assert expected_informative(1 / 3, 0.25, 3) == pytest.approx(1 - 0.1 - 0.4)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 32))
def test_more_rollouts_never_make_fewer_groups_informative(p_pos, clustering, group):
    fewer, more = (expected_informative(p_pos, clustering, g) for g in (group, group + 1))
    assert 0.0 <= fewer <= more + 1e-12
    assert more <= 1.0


def test_skewness_is_scipys_unbiased_one():
    stats = pytest.importorskip("scipy.stats")
    rows = np.random.default_rng(1).exponential(size=(5, 40))
    np.testing.assert_allclose(skewness(rows), stats.skew(rows, axis=1, bias=False), rtol=1e-12)
    assert np.isnan(skewness(np.full((1, 40), 0.1)))[0]


def test_tail_ratio_by_hand():
    """0..20 has quantiles 1, 10 and 19; stretching the upper half by 3 gives a ratio of 3."""
    plain = np.arange(21.0)
    stretched = np.where(plain > 10, 10 + 3 * (plain - 10), plain)
    np.testing.assert_allclose(tail_ratio(np.stack([plain, stretched])), [1.0, 3.0])
    assert np.isnan(tail_ratio(np.array([[0.0] * 20 + [1.0]])))[0]


def test_shape_is_a_low_percentile_and_absent_where_undefined():
    rewards = np.random.default_rng(2).exponential(size=200)
    skew, tail = shape(rewards, 3)
    assert 0 < skew < skewness(rewards[None])[0]
    assert 1 < tail < tail_ratio(rewards[None])[0]
    assert shape(rewards[:29], 3) == (None, None)
    assert shape(np.full(40, 0.3), 3) == (None, None)
    sparse_skew, sparse_tail = shape(np.array([0.0] * 35 + [1.0] * 5), 3)
    assert sparse_skew > 1
    assert sparse_tail is None


@st.composite
def rollouts(draw):
    def one():
        success = draw(st.booleans())
        return rollout(
            draw(st.sampled_from("abcd")),
            draw(st.sampled_from((0.0, 0.1, 0.25, 1 / 3, 1.0))),
            success,
            tuple(draw(st.lists(st.sampled_from((0.0, 0.5)), max_size=4))),
            None if success else draw(st.sampled_from((None, "wrong", "parse", "timeout"))),
            (draw(st.integers(0, 50)), draw(st.integers(0, 50))),
        )

    return [one() for _ in range(draw(st.integers(0, 45)))]


@settings(deadline=None, max_examples=40)
@given(rollouts(), st.randoms(use_true_random=False))
def test_order_of_arrival_changes_nothing(some, random):
    shuffled = list(some)
    random.shuffle(shuffled)
    assert scape(shuffled) == scape(some)


@settings(deadline=None, max_examples=40)
@given(rollouts())
def test_every_number_is_finite_and_every_share_a_share(some):
    found = scape(some)
    numbers = {k: v for k, v in msgspec.structs.asdict(found).items() if v is not None}
    assert all(math.isfinite(v) for v in numbers.values())
    shares = ("reward_mean", "reward_density", "p_pos", "informative", "forecast", "format_failures", "headroom")
    assert all(-1e-12 <= numbers[name] <= 1 + 1e-12 for name in shares)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Landscape) == found

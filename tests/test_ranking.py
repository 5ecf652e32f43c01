"""The ranking of operators: the prior where nothing is known, the measured effect where much is, and replayed as it
was decided."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import DECIDERS, World, play, run_request
from resia.agents.edit_experience import Edit, edits_of, fit_operators
from resia.agents.experience import experience, fit
from resia.agents.operators import CATALOGUE, RANKING_RULE, rank, ranking, scores
from resia.agents.operators.ranking import PRIOR_TRIES, prevailing, prior
from resia.events import DecisionMade, EditRequested, LearnedPolicy, OperatorArm, decode_policy
from resia.replay.explain import explain
from resia.replay.verify import check

NAMES = list(CATALOGUE)
KINDS = ("parse", "weak", "wrong", "tool_error", "truncation", "refusal")
failures = st.dictionaries(st.sampled_from([*KINDS, "solved"]), st.integers(0, 99))
arms = st.integers(0, 40).flatmap(
    lambda n: st.builds(OperatorArm, st.just(n), st.integers(0, n), st.floats(-1, 1).map(lambda mean: mean * n))
)
tables = st.dictionaries(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), arms, max_size=4), max_size=3)
policies = st.builds(LearnedPolicy, operators=tables, operator_scale=st.floats(0, 1))
edits = st.builds(
    Edit,
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(KINDS), st.integers(0, 20), min_size=1),
    st.booleans(),
    st.floats(-1, 1),
)


@given(failures)
def test_without_data_the_score_is_the_prior_and_the_order_that_of_the_failures(found):
    for policy in (None, LearnedPolicy()):
        assert scores(NAMES, found, policy) == {name: prior(name, found) for name in NAMES}
        assert rank(NAMES, found, policy) == rank(NAMES, found)


@given(failures, policies)
def test_of_operators_that_were_never_tried_there_the_priors_alone_make_the_order(found, policy):
    known = policy.operators.get(prevailing(found), {})
    untried = [name for name in NAMES if name not in known or known[name].tries == 0]
    ranked = rank(NAMES, found, policy)
    assert [name for name in ranked if name in untried] == rank(untried, found)


@given(failures, policies, st.sampled_from(NAMES), st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 50))
def test_a_better_measured_effect_never_ranks_lower(found, policy, name, a, b, tries):
    low, high = sorted((a, b))
    places, worth = [], []
    for mean in (low, high):
        table = dict(policy.operators.get(prevailing(found), {})) | {name: OperatorArm(tries, 0, mean * tries)}
        given_ = msgspec.structs.replace(policy, operators={**policy.operators, prevailing(found): table})
        places.append(rank(NAMES, found, given_).index(name))
        worth.append(scores(NAMES, found, given_)[name])
    assert worth[0] <= worth[1]
    assert places[0] >= places[1]


@given(failures, policies)
def test_a_score_lies_between_the_scaled_prior_and_the_measured_mean(found, policy):
    for name, score in scores(NAMES, found, policy).items():
        arm = policy.operators.get(prevailing(found), {}).get(name)
        expected = (policy.operator_scale if policy.operators else 1.0) * prior(name, found)
        mean = arm.effect / arm.tries if arm and arm.tries else expected
        assert min(expected, mean) - 1e-9 <= score <= max(expected, mean) + 1e-9


def test_the_formula_by_hand():
    policy = LearnedPolicy(operators={"parse": {"format-contract": OperatorArm(4, 1, 0.4)}}, operator_scale=0.2)
    found = scores(["format-contract", "demonstrate-neutral"], {"parse": 3, "solved": 1}, policy)
    assert PRIOR_TRIES == 4
    assert found["format-contract"] == pytest.approx((4 * 0.2 * 0.5 * 0.75 + 0.4) / 8)
    assert found["demonstrate-neutral"] == pytest.approx(0.2 * 0.75)


def test_what_prevails_is_the_commonest_failure_and_never_what_was_solved():
    assert prevailing({"solved": 9, "weak": 2, "parse": 2}) == "parse"
    assert prevailing({"solved": 9, "weak": 0}) == prevailing({}) == "none"


# -- fitting ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(edits, max_size=12), st.randoms())
def test_counts_add_up_and_the_order_changes_nothing(tried, random):
    found = fit_operators(tried)
    again = fit_operators(random.sample(tried, len(tried)))
    assert found.arms == again.arms
    assert found.scale == pytest.approx(again.scale)
    counted = [arm for by_name in found.arms.values() for arm in by_name.values()]
    assert sum(arm.tries for arm in counted) == len(tried)
    assert sum(arm.accepted for arm in counted) == sum(edit.accepted for edit in tried)
    assert sum(arm.effect for arm in counted) == pytest.approx(sum(edit.effect for edit in tried))


def test_the_scale_is_what_a_prior_of_1_was_worth():
    """Least squares by numpy, through the origin; kept in [0, 1]."""
    np = pytest.importorskip("numpy")
    tried = [
        Edit("demonstrate-neutral", {"parse": 8}, True, 0.3),
        Edit("format-contract", {"parse": 6, "solved": 2}, False, 0.02),
        Edit("demonstrate-best", {"weak": 5, "solved": 5}, False, -0.01),
    ]
    x = np.array([[prior(edit.operator, edit.failures)] for edit in tried])
    slope = np.linalg.lstsq(x, np.array([edit.effect for edit in tried]), rcond=None)[0][0]
    assert fit_operators(tried).scale == pytest.approx(slope)
    assert fit_operators([edit._replace(effect=-0.5) for edit in tried]).scale == 0.0
    assert fit_operators([]).scale == fit_operators([tried[0]._replace(failures={})]).scale == 1.0


# -- runs ------------------------------------------------------------------------------------------------------------

GAINS = {
    "demonstrate-neutral": 0.0,
    "demonstrate-best": 0.0,
    "format-contract": 0.0,
    "retry-unparsed": 0.25,
    "longer-answers": 0.0,
}
PAST = {
    f"p{seed}": play(
        run_request(seed=seed, mode="H", max_iterations=8, patience_h=6), World(operators=GAINS), run=f"p{seed}"
    )
    for seed in range(3)
}
LEARNED = fit([experience(run, history.state) for run, history in PAST.items()], epsilon=0.1, exploration=0.2)


def with_policy(policy, **loop):
    request = msgspec.structs.replace(run_request(seed=9, mode="H", **loop), policy=policy)
    return play(request, World(operators=GAINS), run="learned")


def test_every_measured_edit_of_past_runs_is_counted_with_its_effect():
    for history in PAST.values():
        trials = [t for t in history.state.trials if t.lever == "edit_harness" and t.gate]
        assert [(e.operator, e.effect) for e in edits_of(history.state)] == [(t.name, t.gate.effect) for t in trials]
        assert trials != []
    arms_ = LEARNED.operators["weak"]
    assert arms_["retry-unparsed"].accepted == len(PAST)
    assert {source.run: source.edits for source in LEARNED.sources} == {
        run: len(edits_of(history.state)) for run, history in PAST.items()
    }
    assert decode_policy(LEARNED.encoded()) == LEARNED


def test_a_run_tries_first_what_worked_in_past_runs_says_so_and_replays():
    history, plain = with_policy(LEARNED, max_iterations=1), with_policy(None, max_iterations=1)
    (asked,), (before,) = history.of(EditRequested), plain.of(EditRequested)
    assert before.operators[0] == "demonstrate-best"
    assert before.scores == {}
    assert asked.operators[0] == "retry-unparsed"
    assert asked.scores == scores(asked.operators, asked.failures, LEARNED)
    decision = history.of(DecisionMade)[0]
    assert decision.rule.split() == ["select-lever/1:1-edit-harness", RANKING_RULE]
    text = explain(history.state, 1).text
    assert "That is: operators are ranked by what they are meant for, shrunk toward what past runs measured." in text
    assert f"operators ranked by policy {LEARNED.digest()[:12]} where weak prevails: first retry-unparsed" in text
    assert check(history.facts, DECIDERS).problems == ()


def test_replay_notices_another_ranking():
    history = with_policy(LEARNED, max_iterations=2)
    genesis = history.facts[0]
    other = msgspec.structs.replace(genesis.event, policy=None)
    report = check([msgspec.structs.replace(genesis, event=other), *history.facts[1:]], DECIDERS)
    assert "nondeterminism" in {problem.kind for problem in report.problems}


def test_a_policy_that_knows_no_edits_has_the_bytes_that_it_had_before():
    bare = msgspec.json.decode(LearnedPolicy().encoded())
    assert sorted(bare) == ["arms", "epsilon", "exploration", "sources", "unit_tokens", "version"]


def test_a_ranking_of_nothing_is_empty():
    assert ranking([], {"parse": 1}, LEARNED) == ((), {}, "", "")

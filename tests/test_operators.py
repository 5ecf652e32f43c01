"""The catalogue of edit operators: each changes its own component alone, and the ranking follows the failures."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import GOOD, small_domain

from resia.agents.operators import CATALOGUE, MAX_EXAMPLES, SearchView, Seen, applicable, rank
from resia.agents.proposing import first_harness
from resia.events import COMPONENTS, Example, Harness, RetryPolicy, SystemPrompt, decode_harness

DOMAIN = small_domain()
FIRST = first_harness(DOMAIN.spec)
# Each use goes a step further, up to a bound.
TWICE = {"longer-answers", "lower-temperature", "higher-temperature"}
NEEDS_TOOLS = {"shortlist-labels", "classify-labels", "attempt-first"}
NEEDS_SAMPLES = {"lower-temperature", "higher-temperature"}  # a second try or a vote

answers = st.fixed_dictionaries({p.name: st.sampled_from(p.choices) for p in DOMAIN.spec.parameters}).map(DOMAIN.render)
harnesses = st.builds(
    Harness,
    st.builds(
        SystemPrompt,
        st.sampled_from([FIRST.system_prompt.text, "", "Short."]) | st.text(max_size=20),
        st.lists(st.builds(Example, st.text(max_size=5), answers), max_size=3).map(tuple),
    ),
    st.sampled_from([FIRST.tool_dispatch, "def dispatch(request, tools): return request"]),
    st.builds(
        RetryPolicy,
        st.floats(0.01, 2.0),
        st.integers(1, 4096),
        st.integers(1, 8),
        st.sampled_from([(), ("\n",)]),
        st.integers(1, 15),
    ),
    st.sampled_from([FIRST.answer_extraction, "def extract(text): return None"]),
)
seen = st.builds(Seen, st.sampled_from(["i0", "i1", "i2"]), st.just("cells=9"), answers, st.floats(-1, 1), st.text())
views = st.builds(
    SearchView,
    st.lists(st.text(max_size=5), min_size=1, max_size=4).map(tuple),
    st.lists(seen, max_size=12).map(tuple),
)
RICH = SearchView(("item",), (Seen("i", "item", GOOD, 1.0, GOOD),))


def rollouts(*rows: tuple[str, str, float]) -> SearchView:
    return SearchView(("p0", "p1"), tuple(Seen(item, f"prompt {item}", a, reward, "") for item, a, reward in rows))


@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=30, deadline=None)
@given(harness=harnesses, view=views)
def test_an_operator_changes_its_own_component_and_no_other(name, harness, view):
    edited = CATALOGUE[name].edit(harness, DOMAIN, view)
    changed = [c for c in COMPONENTS if getattr(edited, c) != getattr(harness, c)]
    assert changed in ([], [CATALOGUE[name].component])


@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=30, deadline=None)
@given(harness=harnesses, view=views)
def test_an_edited_harness_is_one_that_can_be_read_back(name, harness, view):
    """Bounds of the retry policy are checked on decoding alone."""
    edited = CATALOGUE[name].edit(harness, DOMAIN, view)
    assert decode_harness(edited.encoded()) == edited


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - TWICE))
@settings(max_examples=30, deadline=None)
@given(harness=harnesses, view=views)
def test_an_operator_has_nothing_to_do_a_second_time(name, harness, view):
    once = CATALOGUE[name].edit(harness, DOMAIN, view)
    assert CATALOGUE[name].edit(once, DOMAIN, view) == once


@settings(max_examples=30, deadline=None)
@given(harness=harnesses)
def test_steps_of_the_policy_never_go_the_other_way_and_end_at_a_bound(harness):
    policy = harness.retry_policy
    after = {name: CATALOGUE[name].edit(harness, DOMAIN, RICH).retry_policy for name in (*TWICE, "retry-unparsed")}
    assert after["longer-answers"].max_new_tokens >= policy.max_new_tokens
    assert after["lower-temperature"].temperature <= policy.temperature <= after["higher-temperature"].temperature
    assert after["retry-unparsed"].attempts >= policy.attempts
    for name in TWICE:
        stepped = harness
        for _ in range(40):
            stepped = CATALOGUE[name].edit(stepped, DOMAIN, RICH)
        assert CATALOGUE[name].edit(stepped, DOMAIN, RICH) == stepped


@settings(max_examples=30, deadline=None)
@given(harness=harnesses)
def test_applicable_names_what_would_change_the_harness(harness):
    named = applicable(harness, DOMAIN)
    assert list(named) == [n for n in CATALOGUE if n in named]
    # The one that learns from rollouts is named whatever they hold: rules cannot look into them.
    for name in CATALOGUE.keys() - {"demonstrate-best", "demonstrate-neutral"}:
        assert (name in named) == (CATALOGUE[name].edit(harness, DOMAIN, RICH) != harness)
    assert ("demonstrate-neutral" in named) == (not harness.system_prompt.examples)


def test_what_generation_0_can_be_improved_by():
    waits = {"shorten-instruction"}  # for examples to show
    assert set(applicable(FIRST, DOMAIN)) == set(CATALOGUE) - waits - NEEDS_TOOLS - NEEDS_SAMPLES


def test_the_temperature_moves_only_where_something_is_sampled_that_the_gate_compares():
    """Greedy answers ignore it, so without a second try or a vote the edit would change nothing that is compared."""
    for edit in (CATALOGUE[name].edit for name in NEEDS_SAMPLES):
        assert edit(FIRST, DOMAIN, RICH) == FIRST
        for changes in ({"attempts": 2}, {"votes": 3}):
            sampled = msgspec.structs.replace(FIRST, retry_policy=RetryPolicy(**changes))
            assert edit(sampled, DOMAIN, RICH).retry_policy.temperature != 0.7


def test_a_step_up_and_one_down_lead_back_to_the_same_harness():
    start = CATALOGUE["self-consistency"].edit(FIRST, DOMAIN, RICH)
    there = CATALOGUE["lower-temperature"].edit(start, DOMAIN, RICH)
    back = CATALOGUE["higher-temperature"].edit(there, DOMAIN, RICH)
    assert there.digest() != start.digest() == back.digest()


def test_a_harness_has_the_bytes_that_it_had_before_there_were_votes_and_questions():
    plain = msgspec.json.encode(FIRST, order="deterministic")
    later = (b',"votes":1', b',"tool_turns":0', b',"asks":8')
    assert FIRST.encoded() == functools.reduce(lambda data, field: data.replace(field, b""), later, plain)
    assert decode_harness(FIRST.encoded()) == FIRST
    voting = CATALOGUE["self-consistency"].edit(FIRST, DOMAIN, RICH)
    assert b'"votes":5' in voting.encoded()
    assert decode_harness(voting.encoded()) == voting


@settings(max_examples=30, deadline=None)
@given(harness=harnesses, view=views)
def test_the_best_answers_are_the_runs_own_with_a_reward_one_an_item_the_best_last(harness, view):
    edited = CATALOGUE["demonstrate-best"].edit(harness, DOMAIN, view)
    good = [s for s in view.rollouts if s.reward > 0]
    if not good:
        assert edited == harness
        return
    examples = edited.system_prompt.examples
    assert len(examples) == min(len({s.item for s in good}), MAX_EXAMPLES)
    assert {(e.user, e.assistant) for e in examples} <= {(s.prompt, s.answer) for s in good}
    best = max(s.reward for s in good)
    assert examples[-1].assistant in {s.answer for s in good if s.reward == best}


def test_no_answer_is_shown_twice_while_others_are_left():
    view = rollouts(("a", "A", 0.9), ("b", "A", 0.8), ("b", "B", 0.2), ("c", "A", 0.7))
    edited = CATALOGUE["demonstrate-best"].edit(FIRST, DOMAIN, view)
    shown = [(e.user, e.assistant) for e in edited.system_prompt.examples]
    assert shown == [("prompt c", "A"), ("prompt b", "B"), ("prompt a", "A")]


def test_neutral_answers_do_not_depend_on_any_rollout():
    one, other = (
        CATALOGUE["demonstrate-neutral"].edit(FIRST, DOMAIN, SearchView(("p0", "p1"), view.rollouts))
        for view in (rollouts(("a", "A", 0.9)), rollouts())
    )
    assert one == other
    assert [e.assistant for e in one.system_prompt.examples] == [
        DOMAIN.render(answer) for answer in DOMAIN.spec.neutral_answers[:MAX_EXAMPLES]
    ]


def test_shortening_waits_for_examples_and_keeps_the_first_line():
    shorten = CATALOGUE["shorten-instruction"].edit
    assert shorten(FIRST, DOMAIN, RICH) == FIRST
    shown = CATALOGUE["demonstrate-neutral"].edit(FIRST, DOMAIN, RICH)
    assert shorten(shown, DOMAIN, RICH).system_prompt.text == DOMAIN.spec.instruction.splitlines()[0]


def test_the_contract_names_every_choice():
    text = CATALOGUE["format-contract"].edit(FIRST, DOMAIN, RICH).system_prompt.text
    assert text.startswith(FIRST.system_prompt.text)
    assert "order=<rev|std>" in text.splitlines()[-1]


def test_operators_rank_by_the_share_of_outcomes_they_mend():
    assert rank(list(CATALOGUE), {"parse": 10})[:3] == ["demonstrate-neutral", "tolerant-extraction", "format-contract"]
    assert rank(list(CATALOGUE), {"tool_error": 9, "weak": 1})[0] == "repair-arguments"
    assert rank(list(CATALOGUE), {"truncation": 5})[:2] == ["longer-answers", "demonstrate-neutral"]
    assert rank(list(CATALOGUE), {"weak": 3, "solved": 7})[0] == "demonstrate-best"


def test_ties_keep_the_order_of_the_catalogue_and_unknown_names_are_left_out():
    assert rank(sorted(CATALOGUE), {}) == list(CATALOGUE)
    assert rank(["shorten-instruction", "of a later version", "repair-arguments"], {"sandbox_violation": 1}) == [
        "repair-arguments",
        "shorten-instruction",
    ]


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(st.sampled_from([*CATALOGUE, "unknown"]), unique=True),
    failures=st.dictionaries(st.sampled_from(["parse", "weak", "refusal", "?"]), st.integers(0, 99)),
)
def test_the_ranking_holds_every_known_name_once_and_does_not_depend_on_their_order(names, failures):
    ranked = rank(names, failures)
    assert sorted(ranked) == sorted(n for n in names if n != "unknown")
    assert ranked == rank(names[::-1], failures)
    assert ranked == rank(names, {kind: 7 * count for kind, count in failures.items()})


def test_the_documented_catalogue_is_this_one():
    page = (Path(__file__).parent.parent / "docs" / "operators.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    assert rows == [
        f"| `{op.name}` | {op.component} | {', '.join(f'{k} {w:g}' for k, w in op.mends.items())} | {op.rationale} |"
        for op in CATALOGUE.values()
    ]


def test_every_operator_says_what_it_mends_and_why():
    for name, operator in CATALOGUE.items():
        assert operator.name == name
        assert all(0 < weight <= 1 for weight in operator.mends.values())
        assert operator.rationale.endswith(".")
        assert msgspec.json.encode(operator.rationale)

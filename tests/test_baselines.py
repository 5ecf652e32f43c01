"""Modes without learning: what they decide, and which answer they find."""

from __future__ import annotations

import json

import msgspec
import pytest
from fixture_domains import DenseSteps, Sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import DECIDERS, OPERATORS, History, World, play, run_request
from resia.agents import answers
from resia.agents.sources import fixed_extraction
from resia.domains.base import Parameter, Reference, Score
from resia.domains.registry import load_domain
from resia.events import (
    CandidateAccepted,
    DecisionMade,
    EditRequested,
    EvaluationCompleted,
    EvaluationRequested,
    HarnessEdited,
    PriceSettings,
    RolloutRecorded,
    TestUnsealed,
    ToolCall,
    TrainingRequested,
    Trajectory,
    Turn,
)
from resia.events.settings import Price
from resia.replay.explain import explain
from resia.replay.report import rows
from resia.replay.verify import check

SEARCHED = {**OPERATORS, "random-search": 0.3, "best-of-n": 0.3}
GEN0_ROLLOUTS, GEN0_TOKENS = 3 * 4 + 3 + 12, 30 * 27  # rollouts of 30 tokens: 4 sampled and 1 greedy an item


def baseline(mode: str, world: World = World(operators=SEARCHED), **changes) -> History:  # noqa: B008 - immutable
    return play(run_request(mode=mode, **changes), world)


def decisions(history: History) -> list[DecisionMade]:
    return history.of(DecisionMade)


# -- what they decide ------------------------------------------------------------------------------------------------


def test_random_searches_once_and_stops():
    history = baseline("random", token_budget=6_000)
    assert history.actions == ["edit_harness", "stop"]
    (asked,) = history.of(EditRequested)
    # 6,000 tokens pay for 200 rollouts: 27 are generation 0's, 27 judge, and 12 of generation 0's count as scorings.
    assert (asked.operators, asked.scorings) == (("random-search",), 200 - 2 * GEN0_ROLLOUTS + 12)
    assert history.state.ledger.tokens < 6_000 + 4 * 30


def test_best_of_n_samples_while_the_tokens_pay_for_judging():
    history = baseline("best-of-n", token_budget=9_000, max_iterations=1)
    *sampled, searched, stopped = history.actions
    assert (set(sampled), searched, stopped) == ({"sample"}, "edit_harness", "stop")
    more = [e for e in history.of(EvaluationRequested) if e.purpose == "sampling"]
    slots = [(s.item, s.index) for e in more for s in e.slots]
    assert len(set(slots)) == len(slots) == (9_000 - 2 * GEN0_TOKENS) // 30 // 3 * 3
    assert min(index for _, index in slots) == 5  # 0 to 4 are generation 0's own
    assert all(s.split == "search" and not s.greedy for e in more for s in e.slots)
    at_stop = history.state.cycles
    spent = sum(ledger.tokens for cycle, ledger in at_stop.items() if cycle < len(history.actions))
    assert 9_000 - 3 * 30 < spent <= 9_000  # less than one rollout of each item is left


def test_both_have_the_same_number_of_scorings():
    asked = [baseline(mode, token_budget=9_000).of(EditRequested)[0].scorings for mode in ("random", "best-of-n")]
    assert abs(asked[0] - asked[1]) < 3  # rollouts come by whole rounds over the items


@pytest.mark.parametrize("mode", ["random", "best-of-n"])
def test_what_the_search_split_chose_is_returned_whatever_the_gate_finds(mode):
    worse = World(operators={**SEARCHED, "random-search": -0.3, "best-of-n": -0.3})
    history = baseline(mode, worse, token_budget=9_000)
    verdict = history.of(CandidateAccepted)[-1]
    assert verdict.gate.effect < 0
    assert verdict.gate.reason.startswith("what the search split chose is returned whatever the gate finds: ")
    (opened,) = history.of(TestUnsealed)
    assert opened.champion.harness == history.of(HarnessEdited)[0].harness
    assert opened.champion != opened.baseline


@pytest.mark.parametrize("mode", ["random", "best-of-n"])
@pytest.mark.parametrize("order", [None, 1, 2])
def test_they_replay_and_never_train(mode, order):
    history = play(run_request(mode=mode, token_budget=9_000), World(operators=SEARCHED), order=order)
    assert check(history.facts, DECIDERS).problems == ()
    assert history.of(TrainingRequested) == []
    assert history.state.status == "completed"
    assert {r.split for r in history.of(RolloutRecorded) if r.purpose == "sampling"} <= {"search"}
    assert [row.name for row in rows(history.state)] == ["draft", history.of(EditRequested)[0].operators[0]]


def test_a_budget_that_generation_0_spends_leaves_nothing_to_search_with():
    history = baseline("best-of-n", token_budget=100)
    (stop,) = decisions(history)
    assert (stop.action, stop.rule, stop.reason) == ("stop", "baseline/1:0-budget", "no tokens are left")


def test_money_bounds_the_sampling_too():
    request = run_request(mode="best-of-n", money_budget=0.09)
    price = PriceSettings("EUR", {request.settings.engine.model: Price(prompt=10.0, completion=10.0)})
    settings = msgspec.structs.replace(request.settings, price=price)
    history = play(msgspec.structs.replace(request, settings=settings), World(operators=SEARCHED))
    assert history.actions.count("sample") >= 1
    spent = sum(ledger.tokens for cycle, ledger in history.state.cycles.items() if cycle < len(history.actions))
    assert 9_000 - 3 * 30 < spent <= 9_000  # 0.09 EUR at 10 EUR a million


def test_sampling_that_infrastructure_loses_is_not_asked_for_again():
    lost = World(operators=SEARCHED, slot_fails=lambda event, slot: event.purpose == "sampling")
    assert baseline("best-of-n", lost, token_budget=9_000).actions == ["sample", "edit_harness", "stop"]


def test_a_search_that_finds_nothing_ends_the_run_with_generation_0():
    history = baseline("random", World(operators=SEARCHED, edit_fails=lambda _: True))
    assert history.actions == ["edit_harness", "stop"]
    assert decisions(history)[-1].reason == "no operator changes this harness"
    assert history.of(TestUnsealed)[0].champion == history.of(TestUnsealed)[0].baseline


def test_a_sampling_decision_is_explained():
    text = explain(baseline("best-of-n", token_budget=9_000).state, 1).text
    assert "Iteration 1 decided to sample generation 0 again" in text
    assert "That is: this run learns nothing: it samples generation 0 while its tokens last." in text
    assert "Carried out: 192 of 192 rollouts are in." in text


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 20_000), st.integers(1, 8), st.sampled_from([3, 7, 32]))
def test_no_budget_is_overrun_by_more_than_judging(budget, items, shard_size):
    history = baseline("best-of-n", token_budget=max(budget, 1), items=(items, 12, 1), shard_size=shard_size)
    measured = 30 * (items * 5 + 12)
    spent = sum(ledger.tokens for cycle, ledger in history.state.cycles.items() if cycle < len(history.actions))
    assert spent <= max(budget, measured) + measured
    assert len(history.of(EvaluationCompleted)) == len(history.of(EvaluationRequested))


# -- which answer they find ------------------------------------------------------------------------------------------


class Grid:
    """A domain with two arguments whose reward is known, and which refuses a equal to b."""

    def __init__(self, *choices: tuple[int, ...]) -> None:
        names = zip("ab", choices, strict=True)
        parameters = tuple(Parameter(name, held, held[0] if held else 0, name) for name, held in names)
        spec = load_domain("denoising", {"synthetic": True}).spec
        known = (Reference("first", {"a": 0, "b": 1}, "known"),)
        self.spec = msgspec.structs.replace(
            spec, tool="set", parameters=parameters, references=known, neutral_answers=({"a": 0, "b": 1},)
        )

    def items(self, split):
        assert split == "search"  # nothing else may be looked at
        return load_domain("denoising", {"synthetic": True, "search_items": 2}).items("search")

    def parse(self, request):
        if request["a"] == request["b"]:
            raise ValueError("a equals b")
        return dict(request)

    def render(self, answer):
        return f"a={answer['a']} b={answer['b']}"

    def score(self, item, answer):
        return Score((answer["a"] + 10 * answer["b"]) / 100, True, None, "", {})


def test_draws_are_valid_distinct_and_the_same_for_a_seed():
    domain = Grid(tuple(range(5)), tuple(range(5)))
    drawn = list(answers.drawn(domain, 12, 3))
    assert drawn == list(answers.drawn(domain, 12, 3))
    assert drawn != list(answers.drawn(domain, 12, 4))
    assert len({domain.render(answer) for answer in drawn}) == 12
    assert all(answer["a"] != answer["b"] for answer in drawn)
    assert len(list(answers.drawn(domain, 100, 3))) == 20  # all there are


def test_every_answer_is_drawn_about_equally_often():
    domain = Grid((0, 1), (2, 3))
    firsts = [domain.render(next(answers.drawn(domain, 1, seed))) for seed in range(400)]
    assert all(60 < firsts.count(text) < 140 for text in set(firsts))
    assert len(set(firsts)) == 4


def searched(domain, scorings: int, blobs):
    history = baseline("random")
    harness = history.of(EditRequested)[0].parent
    parent = blobs.put(history.blobs[harness.digest], "")
    event = EditRequested(1, parent, ("random-search",), "e", {}, scorings=scorings)
    return answers.edit(history.state, "r", event, domain, blobs)


def test_the_best_on_the_search_items_is_made_into_a_harness(blobs):
    edited = searched(Grid(tuple(range(5)), tuple(range(5))), 10_000, blobs)
    assert isinstance(edited, HarnessEdited)
    assert (edited.operator, edited.component) == ("random-search", "answer_extraction")
    assert edited.rationale == (
        "The best of 20 answers, mean reward 0.4300 on the search items, for every item: a=3 b=4"
    )
    source = json.loads(blobs.get(edited.harness))["answer_extraction"]
    assert source == fixed_extraction({"a": 3, "b": 4})
    space: dict = {}
    exec(source, space)
    assert space["extract"]("anything at all") == {"a": 3, "b": 4}


def test_one_answer_that_is_paid_for_is_taken_unseen(blobs):
    edited = searched(Grid(tuple(range(5)), tuple(range(5))), 0, blobs)
    assert edited.rationale.startswith("The best of 1 answer, scored on no item, for every item: ")


def test_an_argument_without_choices_is_named(blobs):
    failed = searched(Grid(tuple(range(5)), ()), 100, blobs)
    assert failed.error == "no answer of the tool set can be drawn: its argument b has no list of choices"


def test_a_domain_that_breaks_is_no_answer(blobs):
    class Broken(Grid):
        def score(self, item, answer):
            raise RuntimeError("the data are gone")

    failed = searched(Broken(tuple(range(5)), tuple(range(5))), 100, blobs)
    assert "the data are gone" in failed.error


def test_in_a_domain_of_several_steps_the_answer_is_given_at_each(blobs):
    domain = DenseSteps(Sizes(search_items=2))
    edited = searched(domain, 100, blobs)
    assert edited.rationale.startswith(
        "The best of 10 answers, mean reward 0.5000 on the search items, for every item: "
    )


def test_what_a_dispatch_called_on_its_way_is_no_answer_of_the_rollout():
    domain = Grid(tuple(range(5)), tuple(range(5)))
    calls = [
        ("set", {"error": "a equals b"}),
        ("ask", "a=1 b=2"),
        ("shortlist", [1, 2]),
        ("set", {"a": 4, "b": 0}),  # tried, and not what was given in the end
        ("set", {"a": 3, "b": 1}),
    ]
    called = tuple(ToolCall(name, "{}", json.dumps(result)) for name, result in calls)
    turn = Turn((), (1,), (2,), (-1.0,), "a=3 b=1", "stop", calls=called)
    assert answers._said(domain, Trajectory("i", 0, 0.7, (turn,)), "a=3 b=1") == [{"a": 3, "b": 1}]

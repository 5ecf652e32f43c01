"""Budgets of tokens, money and seconds: what they stop, by how much they are overrun, and what a run says it cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from given import clerk
from histories import DECIDERS, WORLD, History, World, golden_history, play, run_request
from resia.agents import feedback
from resia.events import (
    BudgetSpent,
    DecisionMade,
    DraftFailed,
    EditFailed,
    EvaluationCompleted,
    Fact,
    HarnessDrafted,
    HarnessEdited,
    Logged,
    Price,
    PriceSettings,
    RolloutFailed,
    RolloutRecorded,
    RoundTrained,
    RunRequested,
    RunSettings,
    ShardSampled,
    decode,
)
from resia.replay.digest import digest
from resia.replay.fold import evolve, fold
from resia.replay.fork import inherit
from resia.replay.ledger import Ledger, money, proposed
from resia.replay.report import cycles, summary
from resia.replay.state import RunState
from resia.replay.verify import check
from strategies import logs

PRICES = Price(prompt=1.0, completion=4.0, training=2.0)


def priced(currency: str = "EUR", **loop: Any) -> RunRequested:
    """A run's first event with a price on its model, in which 20 prompt and 10 completion tokens a rollout cost 60."""
    request = run_request(**loop)
    models = {request.settings.engine.model: PRICES}
    settings = msgspec.structs.replace(request.settings, price=PriceSettings(currency, models))
    return msgspec.structs.replace(request, settings=settings)


def last(history: History) -> DecisionMade:
    return history.of(DecisionMade)[-1]


# -- money ----------------------------------------------------------------------------------------------------------


def test_money_is_tokens_at_the_prices_of_the_run():
    settings = RunSettings(price=PriceSettings("EUR", {"smollm2-135m-instruct": PRICES, "operators": Price(8.0, 16.0)}))
    spent = Ledger(3, 1, 1_000_000, 500_000, 2_000_000, 250_000, 125_000)
    assert money(spent, settings) == 1.0 + 2.0 + 4.0 + 2.0 + 2.0
    assert money(spent, RunSettings()) == 0.0


def test_what_a_proposer_says_it_spent_is_charged():
    class Said(msgspec.Struct, frozen=True):
        prompt_tokens: int
        completion_tokens: int

    assert proposed(Said(7, 5)) == Ledger(proposer_prompt_tokens=7, proposer_completion_tokens=5)
    assert proposed(Said(7, 5)).tokens == 12
    assert proposed(golden_history().of(HarnessEdited)[0]) == Ledger()


MEASURED = 27 * 60 / 1_000_000  # of generation 0: 27 rollouts


@pytest.mark.parametrize(
    ("budget", "actions"),
    [
        (MEASURED, ["stop"]),
        (MEASURED * 1.001, ["edit_harness", "stop"]),
        (2 * MEASURED, ["edit_harness", "stop"]),
        (2 * MEASURED * 1.001, ["edit_harness", "edit_harness", "stop"]),
    ],
)
def test_money_stops_a_run_at_the_first_decision_without_any(budget, actions):
    history = play(priced(mode="H", money_budget=budget))
    assert history.actions == actions
    assert last(history).rule == "select-lever/1:0-budget"
    paid = money(fold(history.facts[: history.facts.index(decided(history)) - 1]).ledger, priced().settings)
    assert last(history).reason == f"no money is left: {paid:.6g} of {budget:g} EUR"
    assert check(history.facts, DECIDERS).problems == ()


def decided(history: History) -> Fact:
    return next(f for f in reversed(history.facts) if isinstance(f.event, DecisionMade))


def test_money_without_a_price_is_never_spent():
    assert last(play(run_request(mode="H", money_budget=1e-9))).rule != "select-lever/1:0-budget"


# -- seconds ---------------------------------------------------------------------------------------------------------


def before_a_decision(history: History) -> tuple[RunState, Fact]:
    """The state that the first decision was taken on, and the event it was taken for."""
    number = next(n for n, f in enumerate(history.facts, 1) if isinstance(f.event, EvaluationCompleted))
    return fold(history.facts[:number]), history.facts[number - 1]


def spent_fact(state: RunState, spent: float = 60.5) -> Fact:
    draft = clerk("scripted").draft(None, state.sequence, BudgetSpent("seconds", 60.0, spent), "test", 0)
    return decode(state.sequence + 1, draft.subject, draft.data)


def test_seconds_stop_a_run_once_it_is_a_fact():
    state, fact = before_a_decision(play(run_request(seconds_budget=60.0)))
    assert "edit_harness" in [e.action for e in feedback.decide(state, fact) if isinstance(e, DecisionMade)]
    stopped = [e for e in feedback.decide(evolve(state, spent_fact(state)), fact) if isinstance(e, DecisionMade)]
    assert [(e.action, e.rule, e.reason) for e in stopped] == [
        ("stop", "select-lever/1:0-budget", "no time is left of 60 seconds")
    ]


def test_what_the_clock_said_is_in_no_digest_and_in_no_decision():
    state, fact = before_a_decision(play(run_request()))
    early, late = (evolve(state, spent_fact(state, spent)) for spent in (60.1, 99.9))
    assert digest(early) == digest(late) == digest(state)
    reasons = [e.reason for s in (early, late) for e in feedback.decide(s, fact) if isinstance(e, DecisionMade)]
    assert len(set(reasons)) == 1


def test_a_fork_counts_its_own_seconds_and_its_parents_tokens():
    state, _ = before_a_decision(play(run_request()))
    child = inherit(evolve(state, spent_fact(state)))
    assert not child.overdrawn
    assert (child.ledger, child.cycles) == (state.ledger, state.cycles)


# -- how far a budget can be overrun -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12_000), st.sampled_from(["H", "W", "W+H", "random", "best-of-n"]), st.integers(0, 3))
def test_tokens_are_overrun_by_one_step_at_most(budget, mode, seed):
    operators = {**WORLD.operators, "random-search": 0.1, "best-of-n": 0.1}
    history = play(run_request(mode=mode, token_budget=budget, seed=seed), World(operators=operators))
    spent = [cycle.tokens for cycle in cycles(history.state)]
    assert sum(spent[:-2]) < budget or len(spent) == 2  # when the last lever was pulled there were tokens left
    assert spent[-1] <= 2 * 2 * 30  # the sealed test: champion and generation 0 on two items
    assert sum(spent) == history.state.ledger.tokens


# -- the ledger ------------------------------------------------------------------------------------------------------


PROPOSED = (HarnessDrafted, DraftFailed, HarnessEdited, EditFailed)


def counted(facts: list[Logged]) -> Ledger:
    """What a log holds, counted event by event."""
    events = [fact.event for fact in facts if isinstance(fact, Fact)]
    shards = [e for e in events if isinstance(e, ShardSampled)]
    return Ledger(
        sum(isinstance(e, RolloutRecorded) for e in events),
        sum(isinstance(e, RolloutFailed) for e in events),
        sum(e.prompt_tokens for e in shards),
        sum(e.completion_tokens for e in shards),
        sum(e.tokens for e in events if isinstance(e, RoundTrained)),
        sum(e.prompt_tokens for e in events if isinstance(e, PROPOSED)),
        sum(e.completion_tokens for e in events if isinstance(e, PROPOSED)),
    )


def added(held: dict[int, Ledger]) -> Ledger:
    total = Ledger()
    for spent in held.values():
        total = total.plus(spent)
    return total


@given(logs(max_size=40))
def test_cycles_add_up_to_the_ledger_of_any_log(facts):
    state = fold(facts)
    assert state.ledger == counted(facts)
    assert added(dict(state.cycles)) == state.ledger
    assert set(state.cycles) <= set(range(state.iteration + 1))


@given(logs(max_size=30), st.integers(0, 30))
def test_a_log_cut_anywhere_gives_the_same_cycles(facts, at):
    assert fold(facts[at:], fold(facts[:at])).cycles == fold(facts).cycles


def test_every_cycle_has_its_line_whether_it_gave_a_candidate_or_not():
    history = golden_history()
    found = summary(history.state)
    assert [c.action for c in found.cycles] == ["draft", *history.actions]
    failed = next(c for c in found.cycles if c.action == "edit_harness" and not c.tokens)
    assert failed.iteration == 2  # whose edit failed
    assert sum(c.tokens for c in found.cycles) == found.tokens
    assert sum(c.rollouts for c in found.cycles) == found.rollouts
    assert found.money == 0.0


def test_a_summary_says_what_its_cycles_cost():
    found = summary(play(priced(mode="H", max_iterations=2)).state)
    assert found.currency == "EUR"
    assert found.money == pytest.approx(sum(c.money for c in found.cycles))
    assert found.cycles[0].money == pytest.approx(MEASURED)

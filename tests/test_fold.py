"""The fold: total on any log, the same in one go or in two, and indifferent to what was handed out twice."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import play, run_request
from resia.events import DecisionMade, RolloutRecorded, Skipped
from resia.replay.fold import evolve, fold
from resia.replay.report import rows, summary
from resia.replay.state import RunState
from strategies import logs

HISTORY = play(run_request())


@settings(max_examples=100, deadline=None)
@given(logs(), st.data())
def test_folding_a_prefix_and_then_the_rest_is_folding_all(log, data):
    cut = data.draw(st.integers(0, len(log)))
    assert fold(log[cut:], fold(log[:cut])) == fold(log)


@settings(max_examples=100, deadline=None)
@given(logs())
def test_any_log_folds_and_can_be_reported_on(log):
    state = fold(log)
    assert state.sequence == len(log)
    assert list(state.skipped) == [fact.sequence for fact in log if isinstance(fact, Skipped)]
    assert len(rows(state)) <= len(log)
    assert summary(state).events == len(log)


@pytest.mark.parametrize("cut", range(0, len(HISTORY.facts), 40))
def test_a_real_history_folds_in_two_parts(cut):
    assert fold(HISTORY.facts[cut:], fold(HISTORY.facts[:cut])) == HISTORY.state


def test_a_state_of_the_past_stays_as_it_was():
    before = fold(HISTORY.facts[:50])
    copy = fold(HISTORY.facts[:50])
    fold(HISTORY.facts[50:], before)
    assert before == copy


def test_work_handed_out_twice_appends_every_event_once():
    again = play(run_request(), twice=True)
    assert sorted(subject for subject, _ in again.records) == sorted(subject for subject, _ in HISTORY.records)


def test_a_fact_about_an_unknown_evaluation_changes_only_the_ledger():
    rollout = next(fact for fact in HISTORY.facts if isinstance(fact.event, RolloutRecorded))
    state = evolve(RunState(), rollout)
    assert state.ledger.rollouts == 1
    assert not state.evaluations
    assert not state.trainings


def test_a_decision_drops_the_leaves_that_its_root_covers():
    for number, fact in enumerate(HISTORY.facts, 1):
        if isinstance(fact.event, DecisionMade):
            state = fold(HISTORY.facts[:number])
            assert sorted(state.leaves) == list(range(fact.event.root_to + 1, number + 1))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("root_to", [-(2**62), 2**62])
def test_a_root_that_ends_anywhere_folds(root_to):
    decided = next(number for number, fact in enumerate(HISTORY.facts) if isinstance(fact.event, DecisionMade))
    fact = HISTORY.facts[decided]
    odd = msgspec.structs.replace(fact, event=msgspec.structs.replace(fact.event, root_to=root_to))
    assert evolve(fold(HISTORY.facts[:decided]), odd).root_to == root_to

"""The run's table and summary, counted again from the facts."""

from __future__ import annotations

import msgspec
import pytest

from histories import World, golden_history, play, run_request
from resia.events import (
    AdapterTrained,
    CandidateAccepted,
    EvaluationCompleted,
    EvaluationRequested,
    RolloutFailed,
    RolloutRecorded,
    RoundTrained,
    ShardSampled,
    TrainingRequested,
)
from resia.replay.fold import fold
from resia.replay.report import rows, summary
from resia.replay.state import RunState

HISTORY = golden_history()
ROWS = rows(HISTORY.state)


def test_there_is_a_row_for_every_candidate_and_no_other():
    assert [(r.iteration, r.lever, r.name) for r in ROWS] == [
        (0, "draft", "draft"),
        (1, "edit_harness", "demonstrate-best"),
        (3, "train_weights", "grpo"),
    ]
    assert [(r.generation, r.updates) for r in ROWS] == [(0, 0), (1, 0), (1, 1)]


def test_one_row_is_the_champions():
    assert [r.champion for r in ROWS] == [False, False, True]
    assert [r.outcome for r in ROWS] == ["accepted"] * 3


def test_scores_are_those_of_the_closed_evaluation():
    closed = {e.iteration: e.scores for e in HISTORY.of(EvaluationCompleted) if e.purpose == "candidate"}
    for row in ROWS:
        scores = closed[row.iteration]
        assert (row.search, row.validation) == (scores["search"].mean, scores["validation"].mean)
        assert (row.validation_rollouts, row.distinct_answers) == (12, scores["search"].distinct_answers)


def test_the_gates_numbers_are_those_of_the_verdict():
    gates = [verdict.gate for verdict in HISTORY.of(CandidateAccepted)]
    assert (ROWS[0].p_value, ROWS[0].effect, ROWS[0].ci_low, ROWS[0].ci_high) == (None,) * 4
    for row, gate in zip(ROWS[1:], gates[1:], strict=True):
        assert (row.p_value, row.effect) == (gate.p_value, gate.effect)
        assert (row.ci_low, row.ci_high) == (gate.ci_low, gate.ci_high)


def test_a_candidates_cost_is_its_evaluation_and_its_training():
    rollouts = HISTORY.of(RolloutRecorded)
    sampled = {p: sum(r.purpose == p for r in rollouts) for p in ("candidate", "training")}
    trained = sum(done.tokens for done in HISTORY.of(RoundTrained))
    assert trained > 0
    assert sum(r.rollouts for r in ROWS) == sampled["candidate"] + sampled["training"]
    # Rounds of a training that gave no candidate are in no row.
    assert ROWS[2].rollouts == sampled["candidate"] // 3 + sampled["training"]
    assert sum(r.tokens for r in ROWS) == 30 * (sampled["candidate"] + sampled["training"]) + trained
    assert [r.failed_rollouts for r in ROWS] == [1, 1, 1]


def test_an_evaluation_under_way_has_a_row_without_scores():
    number = next(n for n, f in enumerate(HISTORY.facts, 1) if isinstance(f.event, ShardSampled))
    (row,) = rows(fold(HISTORY.facts[:number]))
    assert (row.outcome, row.search, row.validation, row.p_value) == ("measuring", None, None, None)
    assert (row.lever, row.champion) == ("draft", False)
    assert row.rollouts > 0
    closed = next(n for n, f in enumerate(HISTORY.facts, 1) if isinstance(f.event, EvaluationCompleted))
    (row,) = rows(fold(HISTORY.facts[:closed]))
    assert row.outcome == "measured"
    assert row.search is not None


def test_the_next_candidate_is_named_before_its_verdict():
    asked = [n for n, f in enumerate(HISTORY.facts, 1) if isinstance(f.event, EvaluationRequested)]
    assert [(r.name, r.outcome) for r in rows(fold(HISTORY.facts[: asked[2]]))][2:] == [("grpo", "measuring")]


def test_the_summary_counts_what_the_log_holds():
    found = summary(HISTORY.state)
    assert (found.status, found.reason) == ("completed", HISTORY.state.ending.reason)
    assert (found.accepted_edits, found.accepted_updates, found.rejected) == (1, 1, 3)
    assert found.weight_updates == len(HISTORY.of(AdapterTrained)) == 1 < len(HISTORY.of(TrainingRequested))
    assert (found.iterations, found.events) == (len(HISTORY.actions), len(HISTORY.facts))
    assert found.rollouts == len(HISTORY.of(RolloutRecorded))
    assert found.failed_rollouts == len(HISTORY.of(RolloutFailed)) == 2 * 3  # each was asked for once more
    assert found.tokens == 30 * found.rollouts + sum(done.tokens for done in HISTORY.of(RoundTrained))


def test_the_summary_compares_champion_and_baseline():
    found = summary(HISTORY.state)
    assert found.champion_iteration == 3
    assert (found.baseline_validation, found.champion_validation) == (ROWS[0].validation, ROWS[2].validation)
    ending = HISTORY.state.ending
    assert (found.baseline_test, found.champion_test) == (ending.baseline_test, ending.champion_test)


def test_controls_are_there_for_every_split_or_say_why_not():
    found = summary(HISTORY.state)
    assert [(c.name, c.split) for c in found.controls] == [
        ("random-search", split) for split in ("search", "validation", "test")
    ]
    assert found.controls_error == ""
    without = summary(play(run_request(max_iterations=1), World(controls_fail=True)).state)
    assert (without.controls, without.controls_error) == ((), "the data are gone")


def test_a_failed_run_says_why():
    found = summary(play(run_request(), World(draft_fails=True)).state)
    assert (found.status, found.champion_iteration, found.champion_test) == ("failed", None, None)
    assert found.reason == "no harness could be drafted: the store is full"


@pytest.mark.parametrize("state", [RunState(), HISTORY.state])
def test_rows_and_summary_are_plain_values(state):
    found = summary(state)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    assert all(msgspec.json.decode(msgspec.json.encode(row), type=type(row)) == row for row in rows(state))


def test_an_empty_log_has_no_row():
    assert rows(RunState()) == []
    assert summary(RunState()).status == "empty"

"""Whole runs, given a world: what the deciders do together, from the request to the end."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from histories import DECIDERS, OPERATORS, History, World, play, run_request
from resia.events import (
    AdapterTrained,
    CandidateAccepted,
    ControlFailed,
    DecisionMade,
    DraftFailed,
    EditRequested,
    EvaluationCompleted,
    EvaluationRequested,
    HarnessEdited,
    ProbeAlarmed,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RoundRequested,
    RunCompleted,
    RunFailed,
    TestUnsealed,
    TrainingFailed,
    TrainingRequested,
)
from resia.replay.fold import fold
from resia.replay.verify import check

FLAT = dict.fromkeys(OPERATORS, 0.0)
LAST_PATIENCE = 2


def some_world(seed: int) -> World:
    """A world with gains, losses and failures of its own."""
    rng = random.Random(seed)
    lost_shard, lost_edit, lost_round = (rng.random() * 0.3 for _ in range(3))
    return World(
        base=rng.uniform(0.1, 0.6),
        operators={name: rng.choice([0.0, 0.0, 0.2, 0.3, -0.2]) for name in OPERATORS},
        training=rng.choice([0.0, 0.3, -0.1]),
        edit_fails=lambda event: rng.random() < lost_edit,
        round_fails=lambda event: rng.random() < lost_round,
        slot_fails=lambda event, slot: rng.random() < lost_shard and not slot.greedy,
        controls_fail=rng.random() < 0.3,
    )


def some_run(seed: int) -> History:
    rng = random.Random(seed)
    request = run_request(
        seed=seed,
        mode=rng.choice(["H", "W", "W+H", "W+H"]),
        max_iterations=rng.choice([2, 8, 8]),
        patience_h=rng.choice([1, 2, 3]),
        shard_size=rng.choice([3, 8, 32]),
    )
    return play(request, some_world(seed), order=seed)


RUNS = [some_run(seed) for seed in range(16)]
every_run = pytest.mark.parametrize("history", RUNS, ids=lambda h: h.state.request.settings.loop.mode)


@every_run
def test_a_run_ends_by_itself_within_its_iterations(history):
    assert history.state.status == "completed"
    assert len(history.of(RunCompleted)) == 1
    loop = history.state.request.settings.loop
    assert history.actions.index("stop") == len(history.actions) - 1 <= loop.max_iterations


@every_run
def test_there_is_one_decision_an_iteration(history):
    decisions = history.of(DecisionMade)
    assert [decision.iteration for decision in decisions] == list(range(1, len(decisions) + 1))


@every_run
def test_every_action_asks_for_what_carries_it_out(history):
    asked = {EditRequested: "edit_harness", TrainingRequested: "train_weights", TestUnsealed: "stop"}
    for before, after in pairwise(history.facts):
        if isinstance(before.event, DecisionMade):
            assert asked[type(after.event)] == before.event.action
            assert after.envelope.cause == before.envelope.cause
    assert sum(len(history.of(cls)) for cls in asked) == len(history.actions)


@every_run
def test_the_test_opens_once_and_nothing_of_it_is_sampled_before(history):
    opened = [fact.sequence for fact in history.facts if isinstance(fact.event, TestUnsealed)]
    assert len(opened) == 1
    for fact in history.facts[: opened[0]]:
        if isinstance(fact.event, EvaluationRequested | RolloutsRequested):
            assert all(slot.split != "test" for slot in fact.event.slots)
        if isinstance(fact.event, RolloutRecorded | RolloutFailed):
            assert fact.event.split != "test"
    tested = {r.item for r in history.of(RolloutRecorded, RolloutFailed) if r.split == "test"}
    assert tested == set(history.state.request.items["test"])


@every_run
def test_only_the_champion_is_built_on(history):
    """Whatever is edited or trained is the champion of that moment, so a rejected candidate has no descendants."""
    for number, fact in enumerate(history.facts):
        if not isinstance(fact.event, EditRequested | TrainingRequested):
            continue
        champion = fold(history.facts[:number]).champion
        assert fact.event.evaluation == champion.evaluation
        if isinstance(fact.event, EditRequested):
            assert fact.event.parent == champion.candidate.harness
        else:
            assert (fact.event.harness, fact.event.adapter) == (champion.candidate.harness, champion.candidate.adapter)


@every_run
def test_the_champion_changes_on_acceptance_only(history):
    state = fold([])
    for fact in history.facts:
        before, state = state, fold([fact], state)
        if state.champion != before.champion:
            assert isinstance(fact.event, CandidateAccepted)
            assert state.champion.evaluation == fact.event.evaluation


@every_run
def test_a_candidate_differs_from_the_champion_in_one_part(history):
    for number, fact in enumerate(history.facts):
        event, champion = fact.event, fold(history.facts[:number]).champion
        if isinstance(event, EvaluationRequested) and event.purpose == "candidate" and champion:
            harness = event.candidate.harness == champion.candidate.harness
            assert harness != (event.candidate.adapter == champion.candidate.adapter)


@every_run
def test_each_evaluation_is_asked_once_an_iteration_and_closed_once(history):
    asked = [e.iteration for e in history.of(EvaluationRequested) if e.purpose == "candidate"]
    assert sorted(set(asked)) == asked
    closed = [e.request for e in history.of(EvaluationCompleted)]
    assert sorted(closed) == sorted(f.envelope.id for f in history.facts if isinstance(f.event, EvaluationRequested))


def places(rollouts):
    return [(r.evaluation, r.round, r.split, r.item, r.index) for r in rollouts]


@every_run
def test_each_rollout_that_was_asked_for_is_recorded_or_lost_once(history):
    asked = [
        (r.evaluation, r.round, slot.split, slot.item, slot.index, r.retry)
        for r in history.of(RolloutsRequested)
        for slot in r.slots
    ]
    recorded = places(history.of(RolloutRecorded))
    assert sorted(place[:-1] for place in asked) == sorted(recorded + places(history.of(RolloutFailed)))
    assert len(set(asked)) == len(asked)
    assert len(set(recorded)) == len(recorded)


@every_run
def test_what_infrastructure_lost_of_an_evaluation_is_asked_for_once_more_and_no_more(history):
    evaluations = {f.envelope.id for f in history.facts if isinstance(f.event, EvaluationRequested)}
    lost = Counter(place for place in places(history.of(RolloutFailed)) if place[0] in evaluations)
    again = Counter(
        (r.evaluation, r.round, slot.split, slot.item, slot.index)
        for r in history.of(RolloutsRequested)
        for slot in r.slots
        if r.retry
    )
    assert set(again) == set(lost)
    assert set(again.values()) <= {1}
    for closed in history.of(EvaluationCompleted):
        slots = history.state.evaluations[closed.request].request.slots
        assert closed.failed == sum(place[0] == closed.request and n == 2 for place, n in lost.items())
        assert len(closed.rollouts) + closed.failed == len(slots)


@every_run
def test_nothing_is_tried_twice_on_one_champion(history):
    trials = history.state.trials
    edits = [(t.parent.harness, n) for t in trials if t.lever == "edit_harness" for n in t.name.split("+")]
    trainings = [(t.parent, t.name) for t in trials if t.lever == "train_weights"]
    assert len(set(edits)) == len(edits)
    assert len(set(trainings)) == len(trainings)


@every_run
def test_the_levels_of_all_gates_stay_within_the_runs_alpha(history):
    gates = [t.gate for t in history.state.trials if t.gate and t.gate.test]
    assert [gate.test for gate in gates] == list(range(1, len(gates) + 1))
    assert sum(gate.alpha for gate in gates) <= history.state.request.settings.gate.alpha


@every_run
def test_counters_count_what_failed_since_the_champion_changed(history):
    failed = {"edit_harness": 0, "train_weights": 0}
    trials = {trial.iteration: trial for trial in history.state.trials}
    for decision in history.of(DecisionMade):
        before = trials[decision.iteration - 1]
        if before.outcome == "accepted":
            failed = dict.fromkeys(failed, 0)
        else:
            failed[before.lever] += 1
        assert (decision.failed_edits, decision.failed_trainings) == tuple(failed.values())


@every_run
def test_a_mode_pulls_its_levers_only(history):
    allowed = {"H": {"edit_harness", "stop"}, "W": {"train_weights", "stop"}}
    mode = history.state.request.settings.loop.mode
    assert set(history.actions) <= allowed.get(mode, {"edit_harness", "train_weights", "stop"})


@every_run
def test_every_log_verifies_and_its_decisions_replay(history):
    assert check(history.facts, DECIDERS).problems == ()


def test_the_runs_above_hold_every_kind_of_outcome():
    seen = {(t.lever, t.outcome) for history in RUNS for t in history.state.trials}
    outcomes = ("accepted", "rejected", "undecided", "failed")
    levers = ("edit_harness", "train_weights")
    assert seen == {("draft", "accepted"), *((lever, outcome) for lever in levers for outcome in outcomes)}


# -- single stories --------------------------------------------------------------------------------------------------


def test_mode_h_never_trains_even_where_no_edit_helps():
    history = play(run_request(mode="H", patience_h=2), World(operators=FLAT))
    assert history.actions == ["edit_harness", "edit_harness", "stop"]
    assert not history.of(TrainingRequested)
    assert history.of(DecisionMade)[0].masks["train_weights"] == "mode H freezes the weights"


def test_mode_w_never_edits_even_where_training_does_not_help():
    history = play(run_request(mode="W"), World(training=-0.2))
    assert history.actions == ["train_weights"] * LAST_PATIENCE + ["stop"]
    assert not history.of(EditRequested, HarnessEdited)
    assert history.of(DecisionMade)[0].masks["edit_harness"] == "mode W freezes the harness"


def test_levers_take_turns_when_patience_is_spent_and_an_acceptance_begins_anew():
    world = World(base=0.2, operators=FLAT, training=0.3, noise=0.02)
    history = play(run_request(patience_h=2, max_iterations=6), world)
    assert history.actions == [*["edit_harness", "edit_harness", "train_weights"] * 2, "stop"]
    assert [t.outcome == "accepted" for t in history.state.trials] == [True, False, False, True, False, False, True]
    counters = [(d.failed_edits, d.failed_trainings) for d in history.of(DecisionMade)]
    assert counters == [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0), (2, 0), (0, 0)]


def test_training_goes_on_from_the_champions_adapter():
    world = World(base=0.1, training=0.4, noise=0.02)
    history = play(run_request(mode="W", max_iterations=2), world)
    first, second = history.of(AdapterTrained)
    assert (first.parent, second.parent) == (None, first.adapter)
    assert history.state.champion.candidate.adapter == second.adapter


def test_only_the_first_round_learns_from_the_evaluation_and_later_ones_from_fresh_rollouts():
    history = play(run_request(mode="W", max_iterations=1), World(training=0.3))
    by_id = {f.envelope.id: f.event for f in history.facts if isinstance(f.event, RolloutRecorded)}
    first, second = history.of(RoundRequested)
    assert {by_id[i].purpose for i in first.rollouts} == {"candidate"}
    assert {(by_id[i].purpose, by_id[i].round) for i in second.rollouts} == {("training", 1)}
    assert all(by_id[i].split == "search" and not by_id[i].greedy for i in (*first.rollouts, *second.rollouts))


def test_a_spent_token_budget_stops_the_run():
    history = play(run_request(token_budget=1500))
    last = history.of(DecisionMade)[-1]
    assert (last.action, last.reason, last.rule) == ("stop", "no tokens are left", "select-lever/1:0-budget")
    assert history.state.status == "completed"
    assert history.actions[:-1].count("edit_harness") == len(history.actions) - 1 > 0


def test_too_few_validation_items_decide_nothing():
    history = play(run_request(items=(3, 5, 1)))
    assert set(history.outcomes[1:]) == {"undecided"}
    assert history.state.champion == history.state.baseline


def test_a_champion_that_is_the_baseline_is_tested_once():
    history = play(run_request(items=(3, 5, 1)))
    assert [e.purpose for e in history.of(EvaluationRequested)][-1] == "test"
    assert "baseline" not in {e.purpose for e in history.of(EvaluationRequested)}
    ending = history.state.ending
    assert ending.champion_test == ending.baseline_test is not None


def test_a_draft_that_fails_ends_the_run():
    history = play(run_request(), World(draft_fails=True))
    assert history.state.status == "failed"
    assert [type(fact.event) for fact in history.facts[1:]] == [DraftFailed, RunFailed]


@pytest.mark.parametrize("split", ["search", "validation"])
def test_a_baseline_that_infrastructure_lost_ends_in_failure_and_not_in_a_score_of_0(split):
    history = play(run_request(), World(slot_fails=lambda event, slot: slot.split == split))
    assert history.state.status == "failed"
    assert "could not be measured" in history.of(RunFailed)[0].error
    assert not history.of(DecisionMade, CandidateAccepted)
    assert split not in history.of(EvaluationCompleted)[0].scores


def test_a_candidate_that_infrastructure_lost_is_undecided():
    baseline = play(run_request()).of(EvaluationRequested)[0].candidate
    history = play(run_request(mode="H"), World(slot_fails=lambda event, slot: event.candidate != baseline))
    assert history.state.status == "completed"
    assert set(history.outcomes[1:]) == {"undecided"}
    assert history.state.champion == history.state.baseline
    assert all(t.gate.items == 0 and t.gate.effect == 0 for t in history.state.trials[1:])


def test_lost_rollouts_lower_no_score():
    whole = play(run_request(mode="H", max_iterations=1), World(noise=0.0))
    some = World(noise=0.0, slot_fails=lambda event, slot: slot.item in ("s00", "v03"))
    part = play(run_request(mode="H", max_iterations=1), some)
    for split in ("search", "validation"):
        before, after = (h.of(EvaluationCompleted)[0].scores[split] for h in (whole, part))
        assert after.mean == pytest.approx(before.mean)
        assert after.coverage < before.coverage == 1.0


def test_a_sealed_test_that_infrastructure_lost_has_no_score():
    history = play(run_request(), World(slot_fails=lambda event, slot: slot.split == "test"))
    assert history.state.status == "completed"
    assert (history.state.ending.champion_test, history.state.ending.baseline_test) == (None, None)


def test_training_rollouts_that_infrastructure_lost_end_the_training_and_keep_the_champion():
    history = play(run_request(mode="W"), World(slot_fails=lambda event, slot: event.purpose == "training"))
    assert len(history.of(TrainingFailed)) == LAST_PATIENCE
    assert not history.of(AdapterTrained)
    assert history.state.status == "completed"
    assert history.state.champion == history.state.baseline


def test_a_run_without_controls_completes_and_says_so():
    history = play(run_request(max_iterations=1), World(controls_fail=True))
    assert history.state.status == "completed"
    assert isinstance(history.state.controls, ControlFailed)


def test_a_gap_between_search_and_validation_is_an_alarm():
    history = play(run_request(mode="H", max_iterations=2), World(operators=FLAT, overfit=0.3))
    candidates = [e.request for e in history.of(EvaluationCompleted) if e.purpose == "candidate"]
    alarms = history.of(ProbeAlarmed)
    assert [alarm.evaluation for alarm in alarms] == candidates[1:]
    assert all(alarm.score_change > 0.2 > alarm.probe_change for alarm in alarms)
    assert not play(run_request(mode="H", max_iterations=2), World(operators=FLAT)).of(ProbeAlarmed)

"""Given what was trained and sampled, when one more fact comes, then the next round, its rollouts, or the end."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Tape

from given import BLOB
from histories import MANIFEST, World, play, run_request
from resia.events import (
    ALGORITHMS,
    AdapterTrained,
    Blob,
    Candidate,
    EvaluationRequested,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RoundRequested,
    RoundTrained,
    ShardSampled,
    Slot,
    TrainingFailed,
    TrainingRequested,
    TrainingSettings,
)
from resia.replay.fold import evolve, fold
from resia.runtime.worker import Clerk
from resia.trainers.decider import OFF_POLICY, decide, plan

SETTINGS = TrainingSettings(
    rounds=3, groups=2, group_size=4, bon_rounds=3, bon_steps=6, dpo_rounds=3, dpo_steps=6, steps_per_round=2
)
NEXT = Blob("b" * 64, 5)
OPTIMIZER = Blob("c" * 64, 5)


def recorded(evaluation, index, *, purpose="candidate", number=0, split="search", item="s00", greedy=False):
    return RolloutRecorded(
        evaluation, purpose, number, split, item, index, index, greedy,
        0.5, True, None, "", {}, "a=1", (0.5,), 10, 5, BLOB,
    )  # fmt: skip


def sampled(evaluation, shard, shards, number=0, rollouts=4, failed=0):
    return ShardSampled("r", evaluation, "training", shard, shards, number, rollouts, failed, 1, 1, 0.1, MANIFEST)


def trained(training, number, algorithm="grpo", steps=2):
    return RoundTrained(
        "r", training, algorithm, number, NEXT, OPTIMIZER, steps, 4, 0, 0.5, 100, MANIFEST
    )  # fmt: skip


class Given:
    """A champion with search rollouts, and a training that was asked for."""

    def __init__(self, algorithm="grpo", rollouts=3, settings=SETTINGS, adapter=None, shard_size=7):
        self.tape = Tape()
        self.tape.add(run_request(shard_size=shard_size))
        (asked,) = self.tape.add(EvaluationRequested("candidate", 0, Candidate(BLOB), (Slot("search", "s00", 0, 0),)))
        evaluation = asked.envelope.id
        facts = self.tape.add(*(recorded(evaluation, n) for n in range(rollouts)))
        self.search = tuple(sorted(f.envelope.id for f in facts))
        self.tape.add(recorded(evaluation, 9, greedy=True), recorded(evaluation, 9, split="validation", item="v00"))
        request = TrainingRequested(1, algorithm, settings, BLOB, adapter, evaluation, 77)
        (self.fact,) = self.tape.add(request)
        self.training = self.fact.envelope.id

    def when(self, *events):
        """What is decided on the last of `events`."""
        facts = self.tape.add(*events)
        return decide(self.tape.state, facts[-1])

    def then(self, *events):
        """`events` happened; their decisions are not asked for."""
        self.tape.add(*events)
        return self

    def round(self, number):
        return RoundRequested(self.training, "grpo", number, 2, ("x",), None, None, 0)


def test_the_first_round_learns_from_the_champions_sampled_search_rollouts():
    given_ = Given(adapter=NEXT)
    (event,) = decide(given_.tape.state, given_.fact)
    assert isinstance(event, RoundRequested)
    assert (event.training, event.round, event.steps) == (given_.training, 0, 2)
    assert event.rollouts == given_.search
    assert (event.adapter, event.optimizer) == (NEXT, None)


def test_a_champion_without_rollouts_cannot_be_trained():
    given_ = Given(rollouts=0)
    (event,) = decide(given_.tape.state, given_.fact)
    assert event == TrainingFailed(given_.training, 1, "grpo", 0, -1, "the champion has no search rollouts")


def test_after_a_round_an_on_policy_algorithm_asks_for_fresh_rollouts():
    given_ = Given(shard_size=5)
    asked = given_.when(trained(given_.training, 0))
    assert {type(a) for a in asked} == {RolloutsRequested}
    assert [len(a.slots) for a in asked] == [5, 3]
    assert {(a.evaluation, a.purpose, a.round, a.candidate) for a in asked} == {
        (given_.training, "training", 1, Candidate(BLOB, NEXT))
    }
    assert [(a.shard, a.shards) for a in asked] == [(0, 2), (1, 2)]
    slots = [slot for a in asked for slot in a.slots]
    assert [slot.item for slot in slots] == ["s02"] * 4 + ["s00"] * 4  # two groups a round, in turn: 0 1 | 2 0 | 1 2
    assert not any(slot.greedy for slot in slots)
    assert {slot.split for slot in slots} == {"search"}
    assert len({(slot.item, slot.index) for slot in slots}) == len({slot.seed for slot in slots}) == 8


def test_seeds_of_fresh_rollouts_differ_between_rounds_and_not_between_runs():
    seeds = []
    for number in (0, 1):
        given_ = Given()
        seeds.append([s.seed for a in given_.when(trained(given_.training, number)) for s in a.slots])
    assert not set(seeds[0]) & set(seeds[1])
    again = Given()
    again.then(recorded("elsewhere", 0))
    assert [s.seed for a in again.when(trained(again.training, 0)) for s in a.slots] == seeds[0]


@pytest.mark.parametrize("algorithm", sorted(OFF_POLICY))
def test_after_a_round_an_off_policy_algorithm_goes_on_with_the_same_rollouts(algorithm):
    given_ = Given(algorithm)
    (event,) = given_.when(trained(given_.training, 0, algorithm))
    assert isinstance(event, RoundRequested)
    assert (event.round, event.steps, event.rollouts) == (1, 2, given_.search)
    assert (event.adapter, event.optimizer) == (NEXT, OPTIMIZER)


def test_a_round_waits_for_all_of_its_shards():
    given_ = Given().then()
    given_.then(trained(given_.training, 0))
    fresh = given_.tape.add(*(recorded(given_.training, n, purpose="training", number=1) for n in (3, 1, 2)))
    assert given_.when(sampled(given_.training, 0, 2, 1)) == []
    (event,) = given_.when(sampled(given_.training, 1, 2, 1))
    assert isinstance(event, RoundRequested)
    assert event.rollouts == tuple(sorted(f.envelope.id for f in fresh))
    assert (event.round, event.adapter, event.optimizer) == (1, NEXT, OPTIMIZER)


def test_two_shards_that_race_derive_one_id():
    """Both workers may see all shards in; what they write is one event on one subject."""
    given_ = Given()
    given_.then(trained(given_.training, 0), recorded(given_.training, 0, purpose="training", number=1))
    shards = given_.tape.add(sampled(given_.training, 0, 2, 1), sampled(given_.training, 1, 2, 1))
    decided = [decide(given_.tape.state, fact) for fact in shards]
    assert decided[0] == decided[1] != []
    drafts = [
        Clerk("tape", "trainer", worker, "0", lambda: 1.0).drafts(fact, basis, events, "trainer.shard-sampled")
        for worker, basis, fact, events in zip(("a", "b"), (8, 9), shards, decided, strict=True)
    ]
    assert drafts[0][0].subject == drafts[1][0].subject


def test_a_round_that_was_asked_for_is_not_asked_again():
    given_ = Given()
    given_.then(trained(given_.training, 0), recorded(given_.training, 0, purpose="training", number=1))
    given_.then(given_.round(1))
    assert given_.when(sampled(given_.training, 0, 1, 1)) == []


def test_a_round_whose_rollouts_were_all_lost_ends_the_training():
    given_ = Given()
    about = (given_.training, "training", 1, "search", "s00")
    given_.then(trained(given_.training, 0), *(RolloutFailed(*about, n, "gone") for n in range(4)))
    (event,) = given_.when(sampled(given_.training, 0, 1, 1, rollouts=0, failed=4))
    assert isinstance(event, TrainingFailed)
    assert (event.training, event.round, event.step) == (given_.training, 1, -1)
    assert "every rollout of round 1 failed by infrastructure" in event.error


def test_some_lost_rollouts_leave_the_others_to_learn_from():
    given_ = Given()
    about = (given_.training, "training", 1, "search", "s00")
    given_.then(trained(given_.training, 0), RolloutFailed(*about, 0, "gone"))
    (kept,) = given_.tape.add(recorded(given_.training, 1, purpose="training", number=1))
    (event,) = given_.when(sampled(given_.training, 0, 1, 1, rollouts=1, failed=1))
    assert event.rollouts == (kept.envelope.id,)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_last_round_makes_the_adapter(algorithm):
    given_ = Given(algorithm, adapter=OPTIMIZER)
    given_.then(*(trained(given_.training, n, algorithm) for n in range(2)))
    (event,) = given_.when(trained(given_.training, 2, algorithm))
    assert isinstance(event, AdapterTrained)
    assert (event.adapter, event.parent) == (NEXT, OPTIMIZER)
    assert (event.rounds, event.steps, event.tokens, event.rank) == (3, 6, 300, SETTINGS.rank)
    assert event.base_digest == given_.tape.state.request.model_digest


@pytest.mark.parametrize("ending", ["failed", "done"])
def test_nothing_follows_an_ended_training(ending):
    given_ = Given()
    given_.then(trained(given_.training, 0))
    outcome = (
        TrainingFailed(given_.training, 1, "grpo", 1, 0, "not finite")
        if ending == "failed"
        else AdapterTrained(given_.training, 1, "grpo", NEXT, None, 4, 1, 2, 100, "m" * 64)
    )
    given_.then(outcome, recorded(given_.training, 0, purpose="training", number=1))
    assert given_.when(sampled(given_.training, 0, 1, 1)) == []
    assert given_.when(trained(given_.training, 1)) == []


def test_shards_of_an_evaluation_are_none_of_the_trainers_business():
    given_ = Given()
    other = msgspec.structs.replace(sampled(given_.training, 0, 1), purpose="candidate")
    assert given_.when(other) == []


def test_nothing_is_decided_before_a_run_is_requested():
    tape = Tape()
    (fact,) = tape.add(trained("t", 0))
    assert decide(tape.state, fact) == []


def test_the_plan_of_an_off_policy_algorithm_cuts_its_steps_into_rounds():
    assert plan("best_of_n", TrainingSettings(bon_steps=20, bon_rounds=4)) == (4, 5, 20)
    assert plan("dpo", TrainingSettings(dpo_steps=7, dpo_rounds=3)) == (3, 3, 7)
    assert plan("best_of_n", TrainingSettings(bon_steps=2, bon_rounds=4)) == (2, 1, 2)
    for algorithm in set(ALGORITHMS) - OFF_POLICY:
        assert plan(algorithm, TrainingSettings(rounds=8, steps_per_round=1)) == (8, 1, 8)


@settings(max_examples=200, deadline=None)
@given(steps=st.integers(1, 60), rounds=st.integers(1, 12), algorithm=st.sampled_from(sorted(OFF_POLICY)))
def test_the_plan_of_an_off_policy_algorithm_takes_its_steps_and_no_more(steps, rounds, algorithm):
    chosen = TrainingSettings(bon_steps=steps, bon_rounds=rounds, dpo_steps=steps, dpo_rounds=rounds)
    found = plan(algorithm, chosen)
    assert found.rounds <= rounds
    taken = [found.steps(number) for number in range(found.rounds)]
    assert sum(taken) == steps
    assert min(taken) >= 1


def test_a_played_run_asks_for_each_round_once_in_order_and_folds_to_its_outcome():
    history = play(run_request(mode="W", max_iterations=2), World(training=0.3), twice=True)
    for training in history.state.trainings.values():
        asked = [e.round for e in history.of(RoundRequested) if e.training == training.id]
        assert asked == list(range(len(asked)))
        assert isinstance(training.outcome, AdapterTrained)
    state = fold([])
    for fact in history.facts:
        state = evolve(state, fact)
        assert all(len(t.asked) >= len(t.rounds) for t in state.trainings.values())

"""Rollouts that infrastructure lost: asked for again while retries are left, never scored, counted beside a score."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from scripted import Tape

from given import requested
from histories import DECIDERS, World, play, run_request
from resia.agents import taskwork
from resia.events import (
    NAMES,
    Blob,
    Candidate,
    EvaluationCompleted,
    EvaluationRequested,
    Manifest,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RunRequested,
    SamplingSettings,
    ShardSampled,
    Slot,
    decode,
    encode,
)
from resia.replay.explain import explain
from resia.replay.report import rows, summary
from resia.replay.verify import check
from resia.replay.wording import score_text
from resia.runtime.console import _line, controls_table, table

CANDIDATE = Candidate(Blob("a" * 64, 3))
SLOTS = tuple(Slot("search", f"s{n}", 0, n) for n in range(4))
MANIFEST = Manifest("m", "d" * 64, "float32", 1, "x86-64", "0")


class Shards:
    """Four slots in shards of two. `sampled` says what came of a shard, and gives what the rules say to it."""

    def __init__(self, retries=1) -> None:
        self.tape = Tape()
        self.tape.add(requested(sampling=SamplingSettings(shard_size=2, retries=retries)))
        (self.asked,) = self.tape.add(EvaluationRequested("candidate", 0, CANDIDATE, SLOTS))
        self.id = self.asked.envelope.id
        self.first = taskwork.decide(self.tape.state, self.asked)

    def sampled(self, request, lost=()):
        done = [self._rollout(slot, lost) for slot in request.slots]
        failed = len([slot for slot in request.slots if slot.item in lost])
        shard = (self.id, "candidate", request.shard, request.shards, 0, len(done) - failed, failed, 0, 0, 0.0)
        *_, fact = self.tape.add(*done, ShardSampled("r", *shard, MANIFEST, request.retry))
        decided = taskwork.decide(self.tape.state, fact)
        self.tape.add(*decided)
        return decided

    def _rollout(self, slot, lost):
        about = (self.id, "candidate", 0, slot.split, slot.item, slot.index)
        if slot.item in lost:
            return RolloutFailed(*about, "gone")
        scored = (1.0, True, None, "", {}, "a", (1.0,), 1, 1, Blob("b" * 64, 1))
        return RolloutRecorded(*about, slot.seed, slot.greedy, *scored)


def test_what_a_shard_lost_is_asked_for_once_more_by_that_shard_alone():
    shards = Shards()
    one, two = shards.first
    assert (one.retry, two.retry) == (0, 0)
    (again,) = shards.sampled(one, lost=["s1"])
    assert again == msgspec.structs.replace(one, slots=SLOTS[1:2], retry=1)
    assert shards.sampled(two) == []  # every shard is in, and one slot is still asked for
    (closed,) = shards.sampled(again)
    assert isinstance(closed, EvaluationCompleted)
    assert (len(closed.rollouts), closed.failed, closed.scores["search"].coverage) == (4, 0, 1.0)


def test_what_is_lost_again_is_counted_and_never_scored():
    shards = Shards()
    (again,) = shards.sampled(shards.first[0], lost=["s0", "s1"])
    assert again.slots == SLOTS[:2]
    shards.sampled(shards.first[1])
    (closed,) = shards.sampled(again, lost=["s0"])
    assert (len(closed.rollouts), closed.failed) == (3, 1)
    assert (closed.scores["search"].mean, closed.scores["search"].coverage) == (1.0, 0.75)
    assert len(shards.tape.state.evaluations[shards.id].failed) == 3  # every attempt stays in the log


def test_two_retries_ask_twice_and_none_asks_never():
    shards = Shards(retries=2)
    request, asked = shards.first[0], []
    for _ in range(2):
        (request,) = shards.sampled(request, lost=["s0"])
        asked.append((request.retry, request.slots))
    assert asked == [(1, SLOTS[:1]), (2, SLOTS[:1])]
    assert shards.sampled(request, lost=["s0"]) == []
    none = Shards(retries=0)
    assert none.sampled(none.first[0], lost=["s0"]) == []
    assert isinstance(none.sampled(none.first[1])[0], EvaluationCompleted)


def test_a_second_word_on_the_same_loss_asks_for_nothing_new():
    """Two task workers hear of one shard; the later one may have folded the retry's own outcome by then."""
    shards = Shards()
    (again,) = shards.sampled(shards.first[0], lost=["s0"])
    heard = shards.tape.facts[-2]
    assert isinstance(heard.event, ShardSampled)
    assert taskwork.decide(shards.tape.state, heard) == [again]
    shards.sampled(again, lost=["s0"])
    assert taskwork.decide(shards.tape.state, heard) == []


def test_a_shard_that_no_request_has_asks_for_nothing():
    shards = Shards()
    odd = RolloutsRequested(shards.id, "candidate", CANDIDATE, SLOTS[:1], 7, 9)
    assert shards.sampled(odd, lost=["s0"]) == []


def test_an_engine_that_fails_for_one_shard_once_leaves_no_mark_on_the_scores():
    whole = play(run_request(mode="H", max_iterations=2))
    shaky = World(slot_fails=lambda event, slot: event.retry == 0 and event.purpose != "training" and event.shard == 1)
    again = play(run_request(mode="H", max_iterations=2), shaky)
    assert again.of(RolloutFailed) != []
    closed, before = (
        [(e.purpose, e.iteration, e.scores, e.failures, e.failed) for e in history.of(EvaluationCompleted)]
        for history in (again, whole)
    )
    assert closed == before
    assert check(again.facts, DECIDERS).problems == ()


def test_a_run_from_before_there_were_retries_has_none():
    fact = play(run_request()).facts[0]
    assert fact.event.settings.sampling.retries == 1
    wire = msgspec.json.decode(encode(fact.envelope, fact.event))
    del wire["payload"]["settings"]["sampling"]["retries"]
    old = decode(1, "s", msgspec.json.encode({**wire, "version": 1})).event
    assert isinstance(old, RunRequested)
    assert old.settings.sampling.retries == 0
    assert old == msgspec.structs.replace(fact.event, settings=old.settings)
    assert NAMES[RunRequested] == "run-requested"


# -- coverage beside the scores --------------------------------------------------------------------------------------

LOST = {"search": "s00", "validation": "v03", "test": "t00"}
PART = play(
    run_request(mode="H", max_iterations=1),
    World(noise=0.0, slot_fails=lambda event, slot: event.purpose != "training" and LOST[slot.split] == slot.item),
)
WHOLE = play(run_request(mode="H", max_iterations=1), World(noise=0.0))


def printed(view) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("mean", "coverage", "text"),
    [
        (0.5, 1.0, "0.500"),
        (0.5, None, "0.500"),
        (0.5, 0.75, "0.500 (75% scored)"),
        (0.5, 0.9999, "0.500 (99% scored)"),
        (None, 0.5, "-"),
    ],
)
def test_a_score_says_how_much_of_it_was_measured_where_that_is_not_all(mean, coverage, text):
    assert score_text(mean, coverage) == text


def test_rows_and_summary_hold_the_coverage():
    row, found = rows(PART.state)[0], summary(PART.state)
    assert (row.search_coverage, row.validation_coverage) == (pytest.approx(2 / 3), pytest.approx(11 / 12))
    assert found.coverage == {
        "baseline_validation": pytest.approx(11 / 12),
        "champion_validation": pytest.approx(11 / 12),
        "baseline_test": 0.5,
        "champion_test": 0.5,
    }
    assert summary(WHOLE.state).coverage == {}


def test_every_printed_score_has_it_beside_it():
    assert "(66% scored)" in (text := printed(table(rows(PART.state), 160)))
    assert "(91% scored)" in text
    assert "(50% scored)" in printed(controls_table(summary(PART.state)))
    assert "scored" not in printed(table(rows(WHOLE.state), 160)) + printed(controls_table(summary(WHOLE.state)))
    measured = PART.of(EvaluationCompleted)[0]
    assert "search 0.400 (66% scored)  validation 0.400 (91% scored)" in _line(measured)
    assert _line(measured).endswith(f"({measured.failed} rollouts lost to infrastructure)")
    assert "(50% scored)" in explain(PART.state, PART.state.iteration).text

"""Golden logs replay as they did when they were added, at both depths that need the log alone."""

from __future__ import annotations

import pytest
from golden_logs import GOLDEN, expected, facts_of, forged, found, names, records_of, tampered

from histories import DECIDERS, decode_all
from resia.events import RolloutRecorded, StepTrained
from resia.replay.verify import check

SOUND = ("h-v1", "kernels-v1", "resumed-v1", "w-h-v1")
REQUIRED = {*SOUND, "tampered-v1", "divergent-v1"}


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("depth", ["state", "decisions"])
def test_a_golden_log_replays_as_it_did(name, depth):
    wanted = expected(name)
    report = check(facts_of(name), DECIDERS if depth == "decisions" else None)
    assert (report.events, report.digest) == (wanted.events, wanted.digest)
    assert found(report) == getattr(wanted, depth)


def test_none_was_taken_out_and_none_is_large():
    assert set(names()) >= REQUIRED
    assert all(path.stat().st_size < 300_000 for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_log_diverges_nowhere(name):
    assert (expected(name).state, expected(name).decisions) == ((), ())


def test_a_run_that_was_killed_and_resumed_ends_as_the_undisturbed_one():
    assert expected("resumed-v1").digest == expected("w-h-v1").digest
    facts = facts_of("resumed-v1")
    assert {"task-1", "task-2", "trainer-1", "trainer-2"} <= {f.envelope.producer.worker for f in facts}
    steps = [f.envelope for f in facts if isinstance(f.event, StepTrained)]
    assert {e.basis for e in steps if e.cause == steps[0].cause} == {86, 88}  # two attempts at one round


def test_a_changed_byte_is_caught_by_the_root_over_its_event():
    wanted, report = expected("tampered-v1"), check(facts_of("tampered-v1"))
    assert len(wanted.state) == 1
    assert report.first.kind == "root"
    assert report.first.why.startswith("events 83 to 152 give root")  # the changed event is 140


def test_what_the_changed_byte_bears_on_is_named_by_the_rules():
    first = check(facts_of("tampered-v1"), DECIDERS).first
    assert (first.sequence, first.kind) == (152, "nondeterminism")
    assert first.why.startswith("task 0.1.0 wrote evaluation-completed with scores.validation.mean = ")


def test_a_forged_decision_under_sound_roots_is_caught_by_the_rules_alone():
    facts = facts_of("divergent-v1")
    assert check(facts).problems == ()
    (problem,) = check(facts, DECIDERS).problems
    assert problem.sequence == 152
    wrote = "task 0.1.0 wrote evaluation-completed with scores.search.mean = 0.13956075"
    assert problem.why == f"{wrote}; on replay the rule gives 0.03956075"


def scores(name):
    return [
        fact.sequence
        for fact in facts_of(name)
        if isinstance(fact.event, RolloutRecorded) and fact.event.purpose == "candidate" and fact.event.reward > 0
    ]


@pytest.mark.parametrize("event", scores("h-v1")[::4])
def test_any_reward_that_is_changed_is_caught_at_the_state_depth(event):
    old, new = b'"reward":0.1', b'"reward":0.9'
    records = records_of("h-v1")
    if old not in records[event - 1][1]:
        old, new = b'"reward":0', b'"reward":1'
    kinds = [problem.kind for problem in check(decode_all(tampered(records, event, old, new))).problems]
    assert kinds == ["root"]
    again = check(decode_all(forged(records, event, old, new)), DECIDERS).problems
    assert [problem.kind for problem in again][:1] == ["nondeterminism"]

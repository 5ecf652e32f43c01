"""Verification: a sound log has no problem, and each way of being unsound is named with its event."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from histories import DECIDERS, World, decode_all, golden_history, play, read_golden, run_request
from resia.agents import feedback
from resia.events import (
    Blob,
    Candidate,
    Custom,
    DecisionMade,
    EditRequested,
    EvaluationCompleted,
    RolloutRecorded,
    RunCompleted,
    Skipped,
    TestUnsealed,
    TrainingFailed,
    decode,
)
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.fork import before_decision, inherit
from resia.replay.identity import decided, identity, performed
from resia.replay.redeciding import first_difference
from resia.replay.seal import broken_by
from resia.replay.verify import Problem, blobs_named, check
from resia.runtime.worker import Clerk
from strategies import logs, replaced

GOLDEN = Path(__file__).parent / "golden"
HISTORY = golden_history()
FACTS = HISTORY.facts


def at(cls, nth=0) -> int:
    """Index of the `nth` event of a class."""
    return [number for number, fact in enumerate(FACTS) if isinstance(fact.event, cls)][nth]


def with_fact(index, fact):
    return [*FACTS[:index], fact, *FACTS[index + 1 :]]


def with_event(index, **changes):
    event = msgspec.structs.replace(FACTS[index].event, **changes)
    return with_fact(index, msgspec.structs.replace(FACTS[index], event=event))


def kinds(report):
    return [(problem.sequence, problem.kind) for problem in report.problems]


@pytest.mark.parametrize("deciders", [{}, DECIDERS])
def test_a_sound_log_has_no_problem(deciders):
    report = check(FACTS, deciders)
    assert report.problems == ()
    assert report.first is None
    assert (report.events, report.digest) == (len(FACTS), digest(HISTORY.state))


@pytest.mark.parametrize("order", range(4))
def test_no_interleaving_of_the_roles_is_a_problem(order):
    slow = World(slot_fails=lambda event, slot: event.purpose == "training" and event.round == 1)
    history = play(run_request(patience_h=1), slow, order=order, twice=True)
    assert check(history.facts, DECIDERS).problems == ()


@pytest.mark.parametrize("log", sorted(GOLDEN.glob("*.jsonl")), ids=lambda path: path.stem)
def test_golden_logs_keep_their_digest_and_their_decisions(log):
    report = check(decode_all(read_golden(log)), DECIDERS)
    assert report.problems == ()
    assert report.digest == log.with_suffix(".digest").read_text().strip()


def test_the_golden_folder_holds_a_log():
    assert (GOLDEN / "scripted-v1.jsonl").exists()


@settings(max_examples=50, deadline=None)
@given(logs())
def test_any_log_can_be_checked(log):
    report = check(log, DECIDERS)
    assert report.events == len(log)
    assert report.digest == digest(fold(log))
    unreadable = [fact.sequence for fact in log if isinstance(fact, Skipped)]
    assert [p.sequence for p in report.problems if p.kind == "unreadable"] == unreadable
    assert [p.sequence for p in report.problems] == sorted(p.sequence for p in report.problems)


def tampered(index, old, new):
    """The log with one stored message changed."""
    subject, data = HISTORY.records[index]
    assert old in data
    return with_fact(index, decode(index + 1, subject, data.replace(old, new, 1)))


@pytest.mark.parametrize("index", [at(RolloutRecorded), at(RolloutRecorded, 60), at(EditRequested)])
def test_a_changed_byte_of_a_payload_shows_at_the_next_root(index):
    changed = tampered(index, b'"split":"search"', b'"split":"search" ') if index != at(EditRequested) else None
    log = changed or tampered(index, b'"iteration":1', b'"iteration": 1')
    root = next(f for f in FACTS[index + 1 :] if isinstance(f.event, DecisionMade | RunCompleted))
    report = check(log)
    assert kinds(report) == [(root.sequence, "root")]
    assert f"events {root.event.root_from + 1} to {root.event.root_to}" in report.first.why


def test_a_changed_decided_event_is_named_itself_when_rules_are_replayed():
    index = at(EvaluationCompleted, 1)
    report = check(tampered(index, b'"failed":1', b'"failed":0'), DECIDERS)
    assert report.first.sequence == index + 1
    assert report.first.kind == "nondeterminism"
    assert report.first.why == "task 1.0 wrote evaluation-completed with failed = 0; on replay the rule gives 1"


def test_a_message_taken_out_leaves_a_gap_and_breaks_the_root():
    report = check([*FACTS[:10], *FACTS[11:]])
    assert report.first == Problem(12, "numbering", "the number should be 11")
    assert "root" in [problem.kind for problem in report.problems]


def test_numbers_begin_at_1():
    assert check(FACTS[1:3]).first.kind == "numbering"


def test_an_unreadable_message_is_named():
    report = check([*FACTS, Skipped(len(FACTS) + 1, "0" * 64, "unknown type 'x'")])
    assert report.problems == (Problem(len(FACTS) + 1, "unreadable", "unknown type 'x'"),)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"run": "other"}, "run"),
        ({"id": FACTS[2].envelope.id}, "id"),
        ({"cause": "f" * 26}, "cause"),
        ({"cause": None}, "cause"),
        ({"basis": 11}, "basis"),
        ({"basis": 10_000}, "basis"),
        ({"basis": -1}, "basis"),
        ({"basis": 0}, "basis"),
    ],
)
def test_an_envelope_that_does_not_fit_is_named(changes, kind):
    assert isinstance(FACTS[10].event, RolloutRecorded)
    report = check(with_fact(10, replaced(FACTS[10], **changes)))
    assert kinds(report) == [(11, kind)]


@pytest.mark.parametrize("field", ["root_from", "root_to"])
@pytest.mark.parametrize("cls", [DecisionMade, RunCompleted])
def test_a_root_over_another_span_is_named(cls, field):
    index = at(cls)
    value = getattr(FACTS[index].event, field)
    report = check(with_event(index, **{field: value + 1}))
    assert (report.first.sequence, report.first.kind) == (index + 1, "root")


def test_another_root_is_named():
    index = at(DecisionMade, 1)
    assert kinds(check(with_event(index, merkle_root="0" * 64))) == [(index + 1, "root")]


def late(basis):
    """A rollout like the last one, written after the run's end from what its writer knew at event `basis`."""
    last = [fact for fact in FACTS if isinstance(fact.event, RolloutRecorded)][-1]
    fact = replaced(last, id="0" * 26, basis=basis)
    return [*FACTS, msgspec.structs.replace(fact, sequence=len(FACTS) + 1)]


def test_what_was_in_flight_may_follow_the_end():
    assert check(late(len(FACTS) - 1)).problems == ()


def test_what_was_decided_after_the_end_is_named():
    assert isinstance(FACTS[-1].event, RunCompleted)
    assert kinds(check(late(len(FACTS)))) == [(len(FACTS) + 1, "after-end")]


def unsealed_again(facts):
    """The log with another opening of the test after its end, of what was in flight."""
    opened = next(f for f in FACTS if isinstance(f.event, TestUnsealed))
    fact = replaced(opened, id="0" * 26, cause=facts[0].envelope.id, basis=1, run=facts[0].envelope.run)
    return [*facts, msgspec.structs.replace(fact, sequence=len(facts) + 1)]


def test_a_second_opening_of_the_test_is_named():
    assert kinds(check(unsealed_again(FACTS))) == [(len(FACTS) + 1, "seal")]
    assert broken_by([FACTS[at(TestUnsealed)].event], HISTORY.state)
    assert not broken_by([FACTS[at(TestUnsealed)].event], fold(FACTS[: at(TestUnsealed)]))
    assert not broken_by([FACTS[at(DecisionMade)].event], HISTORY.state)


def test_an_opening_of_the_test_in_a_fork_is_named():
    child, origin = forked()
    problem = check(unsealed_again(child.facts), None, origin).first
    assert (problem.sequence, problem.kind) == (len(child.facts) + 1, "seal")
    assert "stays closed in a fork" in problem.why
    assert broken_by([FACTS[at(TestUnsealed)].event], child.state) == problem.why


# -- the decisions depth ---------------------------------------------------------------------------------------------


def other_rule(state, fact):
    """The feedback rules of some other version of the package: they count one more failed edit."""
    events = feedback.decide(state, fact)
    return [
        msgspec.structs.replace(e, failed_edits=e.failed_edits + 1) if isinstance(e, DecisionMade) else e
        for e in events
    ]


DIVERGENT = play(run_request(patience_h=1), deciders={**DECIDERS, "feedback": other_rule})


def test_a_log_that_other_rules_wrote_is_sound_but_diverges():
    assert check(DIVERGENT.facts).problems == ()
    report = check(DIVERGENT.facts, DECIDERS)
    decisions = [fact.sequence for fact in DIVERGENT.facts if isinstance(fact.event, DecisionMade)]
    assert kinds(report) == [(sequence, "nondeterminism") for sequence in decisions]
    assert report.first.why == "feedback 1.0 wrote decision-made with failed_edits = 1; on replay the rule gives 0"


def test_roles_without_rules_here_are_taken_at_their_word():
    assert check(DIVERGENT.facts, {"task": DECIDERS["task"]}).problems == ()


def drop_last(state, fact):
    return feedback.decide(state, fact)[:-1]


def add_one(state, fact):
    events = feedback.decide(state, fact)
    return [*events, *events[-1:]]


def reverse(state, fact):
    return feedback.decide(state, fact)[::-1]


def fail(state, fact):
    raise KeyError("no such evaluation")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (drop_last, "the rule gives 2 events, the log has 3"),
        (add_one, "the rule gives edit-requested after it"),
        (reverse, "candidate-accepted; on replay the rule gives edit-requested"),
        (fail, "the rule fails: KeyError: 'no such evaluation'"),
    ],
)
def test_another_list_of_events_is_named(rule, why):
    assert why in check(FACTS, {"feedback": rule}).first.why


def test_an_id_that_is_not_derived_from_its_cause_is_named():
    index = at(EditRequested)
    report = check(with_fact(index, replaced(FACTS[index], id="e" * 26)), DECIDERS)
    problem = next(p for p in report.problems if p.kind == "nondeterminism")
    assert problem.sequence == index + 1
    assert f"on replay its id is {FACTS[index].envelope.id}" in problem.why


def test_a_training_given_up_by_the_rules_is_decided_and_one_that_broke_is_not():
    lost = World(slot_fails=lambda event, slot: event.purpose == "training")
    given_up = play(run_request(mode="W"), lost)
    assert given_up.of(TrainingFailed)
    assert check(given_up.facts, DECIDERS).problems == ()
    never = check(given_up.facts, {"trainer": lambda state, fact: []})
    failed = [f.sequence for f in given_up.facts if isinstance(f.event, TrainingFailed)]
    assert set(failed) <= {problem.sequence for problem in never.problems}
    broken = [f.sequence for f in FACTS if isinstance(f.event, TrainingFailed)]
    assert broken
    assert not set(broken) & {p.sequence for p in check(FACTS, {"trainer": lambda state, fact: []}).problems}


# -- what a fork inherits --------------------------------------------------------------------------------------------


def forked():
    """A fork before the second decision, and the state that it inherits."""
    number = at(DecisionMade, 1) + 1
    parent = before_decision(FACTS, number)
    origin = inherit(fold(FACTS[: parent.sequence]))
    request = msgspec.structs.replace(HISTORY.state.request, parent=parent)
    return play(request, run="child", origin=origin, blobs=HISTORY.blobs), origin


def test_a_fork_is_checked_from_what_it_inherits():
    child, origin = forked()
    report = check(child.facts, DECIDERS, origin)
    assert report.problems == ()
    assert report.digest == digest(child.state)
    assert check(child.facts, None, origin).digest == report.digest


def test_the_decision_that_a_forks_first_event_asks_for_is_taken_again():
    child, origin = forked()
    first = next(fact for fact in child.facts if isinstance(fact.event, DecisionMade))
    assert child.facts[0].envelope.id == first.envelope.cause
    without = check(child.facts, DECIDERS)
    assert (without.first.kind, without.first.sequence <= first.sequence) == ("nondeterminism", True)
    event = msgspec.structs.replace(first.event, failed_edits=9)
    facts = [msgspec.structs.replace(f, event=event) if f is first else f for f in child.facts]
    problem = check(facts, DECIDERS, origin).first
    assert (problem.sequence, problem.kind) == (first.sequence, "nondeterminism")


# -- differences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reason": "x"}, "reason = 'x'; on replay it is "),
        ({"features": None}, "features = None; on replay it is Landscape("),
        ({"scores": {"grpo": 9.0}}, "scores.grpo = 9.0; on replay it is "),
        ({"scores": {"dpo": 1.0}}, "scores = {'dpo': 1.0}; on replay it is "),
    ],
)
def test_a_difference_is_named_by_the_innermost_field(changes, why):
    event = next(e for e in HISTORY.of(DecisionMade) if e.scores and "grpo" in e.scores)
    event = msgspec.structs.replace(event, scores={"grpo": 1.0})
    assert first_difference(msgspec.structs.replace(event, **changes), event, "it is").startswith(why)


def test_a_difference_deep_inside_is_named_by_its_path():
    event = next(e for e in HISTORY.of(DecisionMade) if e.features)
    features = msgspec.structs.replace(event.features, horizon=-1.0)
    changed = msgspec.structs.replace(event, features=features)
    assert first_difference(changed, event, "it is").startswith("features.horizon = -1.0; on replay it is ")


def test_a_fact_may_be_caused_by_a_fact_of_a_users_own():
    last = FACTS[-2]
    custom = Custom(2, "0" * 64, replaced(FACTS[1], id="c" * 26, type="alerts_asked").envelope, {})
    after = msgspec.structs.replace(replaced(last, id="d" * 26, cause="c" * 26, basis=2), sequence=3)
    assert "cause" not in [kind for _, kind in kinds(check([FACTS[0], custom, after]))]


# -- ids and blobs ---------------------------------------------------------------------------------------------------


def test_ids_are_those_that_the_worker_derives():
    by_id = {fact.envelope.id: fact for fact in FACTS}
    ordinals: dict[tuple[str, str], int] = {}
    for fact in FACTS[1:]:
        cause = by_id[fact.envelope.cause]
        role, kind = fact.envelope.producer.role, cause.envelope.type
        candidates = [
            identity("golden", cause.envelope.id, fact.event, handler, ordinals.get((cause.envelope.id, handler), 0))
            for handler in (decided(role, kind), performed(role, kind))
        ]
        assert fact.envelope.id in candidates
        handler = (decided(role, kind), performed(role, kind))[candidates.index(fact.envelope.id)]
        key = (cause.envelope.id, handler)
        ordinals[key] = ordinals.get(key, 0) + 1


def test_the_first_event_has_the_runs_own_id():
    event = FACTS[0].event
    draft = Clerk("golden", "user", "w1", "0", lambda: 0.0).genesis(event)
    assert draft.id == FACTS[0].envelope.id == identity("golden", None, event, "user.genesis", 0)


def test_blobs_named_are_all_of_an_event_each_once():
    harness, adapter = Blob("a" * 64, 1), Blob("b" * 64, 2)
    champion = Candidate(harness, adapter)
    ending = RunCompleted("r", champion, Candidate(harness), 0.5, 0.4, "0" * 64, 0, 1)
    assert blobs_named(ending) == (harness, adapter)
    assert blobs_named(FACTS[0].event) == ()


def test_every_blob_that_a_history_stored_is_named_by_some_event():
    named = {blob.digest for fact in FACTS for blob in blobs_named(fact.event)}
    assert named == set(HISTORY.blobs)

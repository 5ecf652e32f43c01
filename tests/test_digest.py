"""The digest: blind to names, clocks and interleaving, and to nothing that a rule reads."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import History, World, play, run_request
from resia.events import CandidateAccepted, RolloutRecorded, ShardSampled, Skipped, StepTrained
from resia.replay.digest import digest, view
from resia.replay.fold import fold
from strategies import logs

REQUEST = run_request(patience_h=1, max_iterations=4)
HISTORY = play(REQUEST)


def with_events(history: History, change) -> str:
    """Digest of the history with every event put through `change`."""
    facts = [msgspec.structs.replace(fact, event=change(fact.event)) for fact in history.facts]
    return digest(fold(facts))


@settings(max_examples=100, deadline=None)
@given(logs())
def test_every_state_has_a_digest(log):
    state = fold(log)
    assert digest(state) == digest(fold(log))
    assert len(digest(state)) == 64


@settings(max_examples=100, deadline=None)
@given(logs(), st.integers(0, 30))
def test_skipped_messages_do_not_count(log, at):
    cut = min(at, len(log))
    later = [msgspec.structs.replace(fact, sequence=fact.sequence + 1) for fact in log[cut:]]
    assert digest(fold([*log[:cut], Skipped(cut + 1, "0" * 64, "noise"), *later])) == digest(fold(log))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_another_name_worker_clock_and_interleaving_give_the_same_digest(order):
    other = play(REQUEST, run="other-name", worker="w7", clock=5000.0, order=order, twice=True)
    assert other.facts[5].envelope != HISTORY.facts[5].envelope
    assert view(other.state) == view(HISTORY.state)
    assert digest(other.state) == digest(HISTORY.state)


def test_rollouts_in_another_order_within_their_shard_give_the_same_digest():
    facts, start = list(HISTORY.facts), 0
    rng = random.Random(0)
    for number, fact in enumerate(HISTORY.facts):
        if isinstance(fact.event, ShardSampled):
            shard = facts[start:number]
            rng.shuffle(shard)
            facts[start:number] = shard
        if not isinstance(fact.event, RolloutRecorded):
            start = number + 1
    assert facts != list(HISTORY.facts)
    assert digest(fold(facts)) == digest(HISTORY.state)


def test_speeds_and_reuse_marks_do_not_count():
    def change(event):
        if isinstance(event, StepTrained):
            return msgspec.structs.replace(event, tokens_per_s=1e6)
        if isinstance(event, ShardSampled):
            return msgspec.structs.replace(event, seconds=1e6)
        if isinstance(event, RolloutRecorded):
            return msgspec.structs.replace(event, reused=not event.reused)
        return event

    assert with_events(HISTORY, change) == digest(HISTORY.state)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (RolloutRecorded, "reward", 0.123),
        (RolloutRecorded, "answer", "another"),
        (ShardSampled, "completion_tokens", 7),
        (StepTrained, "loss", 9.0),
        (CandidateAccepted, "evaluation", "nowhere"),
    ],
)
def test_what_rules_read_counts(kind, field, value):
    def change(event):
        return msgspec.structs.replace(event, **{field: value}) if isinstance(event, kind) else event

    assert with_events(HISTORY, change) != digest(HISTORY.state)


def test_a_field_at_its_default_is_not_there_and_any_other_value_counts():
    assert "ordinal" not in view(HISTORY.state)["request"]
    ordinal = msgspec.structs.replace(HISTORY.state.request, ordinal=True)
    assert digest(msgspec.structs.replace(HISTORY.state, request=ordinal)) != digest(HISTORY.state)


def test_settings_count_by_their_digest():
    request = view(HISTORY.state)["request"]
    assert "settings" not in request
    assert request["settings_digest"] == HISTORY.state.request.settings.digest()


def test_another_seed_gives_another_digest():
    assert digest(play(run_request(seed=1, patience_h=1, max_iterations=4)).state) != digest(HISTORY.state)


def test_a_lost_rollout_counts_but_not_what_was_said_of_it():
    def lost(text):
        history = play(REQUEST, World(slot_fails=lambda event, slot: slot.item == "s00" and slot.index == 0))
        return with_events(
            history, lambda e: msgspec.structs.replace(e, error=text) if type(e).__name__ == "RolloutFailed" else e
        )

    assert lost("port 4222 refused") == lost("port 5000 refused") != digest(HISTORY.state)


def test_infinities_and_large_numbers_have_a_digest():
    odd = {"big": 10**40, "inf": float("inf"), "nan": float("nan")}
    rollouts = [f for f in HISTORY.facts[:30] if isinstance(f.event, RolloutRecorded)]
    changed = msgspec.structs.replace(rollouts[0].event, metrics=odd)
    facts = [msgspec.structs.replace(f, event=changed) if f is rollouts[0] else f for f in HISTORY.facts[:30]]
    assert digest(fold(facts)) != digest(fold(HISTORY.facts[:30]))

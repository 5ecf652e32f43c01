"""Votes: which answer is elected, and what a rollout with votes records."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import GOOD, ScriptedEngine, Tape, confined, ports, small_domain

from given import requested
from resia.agents import rollout
from resia.agents.proposing import first_harness
from resia.agents.voting import elected
from resia.domains.base import Domain
from resia.events import (
    OUTVOTED,
    Candidate,
    EvaluationRequested,
    RolloutRecorded,
    RolloutsRequested,
    Slot,
    decode_trajectory,
)
from resia.events.ids import seed_for
from resia.runtime.blobs import DirectoryBlobs

DOMAIN: Domain = small_domain()
HARNESS = first_harness(DOMAIN.spec)
ITEM = DOMAIN.items("search")[0].id
OTHER = GOOD.replace("knn=5", "knn=7")
ballots = st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=9)


@given(ballots)
def test_the_commonest_answer_is_elected_and_among_equals_the_first(cast):
    counts = Counter(ballot for ballot in cast if ballot is not None)
    chosen = elected(cast)
    if not counts:
        assert chosen == len(cast) - 1
        return
    assert counts[cast[chosen]] == max(counts.values())
    tied = [text for text in counts if counts[text] == max(counts.values())]
    assert chosen == min(cast.index(text) for text in tied)


@given(ballots, st.randoms())
def test_a_majority_wins_in_any_order(cast, random):
    counts = Counter(ballot for ballot in cast if ballot is not None)
    (winner, most), *rest = counts.most_common(2) or [(None, 0)]
    if rest and rest[0][1] == most:
        return
    shuffled = random.sample(cast, len(cast))
    assert shuffled[elected(shuffled)] == winner


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


def play(sandbox, tmp_path, engine, slot, **policy):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    retry_policy = msgspec.structs.replace(HARNESS.retry_policy, **policy)
    harness = msgspec.structs.replace(HARNESS, retry_policy=retry_policy)
    candidate, tape = Candidate(blobs.put(harness.encoded())), Tape()
    tape.add(requested())
    (asked,) = tape.add(EvaluationRequested("candidate", 0, candidate, (slot,)))
    (fact,) = tape.add(RolloutsRequested(asked.envelope.id, "candidate", candidate, (slot,), 0, 1))
    ((recorded, _),) = rollout.sample_shard(tape.state, fact, DOMAIN, ports(engine, sandbox, blobs, []))
    assert isinstance(recorded, RolloutRecorded)
    return recorded, decode_trajectory(blobs.get(recorded.trajectory)).turns


def in_turn(*texts):
    """An engine that says `texts` in the order of its calls."""
    said = iter(texts)
    return ScriptedEngine(lambda *_: next(said))


SAMPLED, GREEDY = Slot("search", ITEM, 0, 100), Slot("search", ITEM, 8, 100, greedy=True)


def test_every_completion_is_a_turn_and_only_the_elected_one_earns(sandbox, tmp_path):
    engine = in_turn(OTHER, GOOD, "hm", GOOD, OTHER.replace("7", "9"))
    found, turns = play(sandbox, tmp_path, engine, SAMPLED, votes=5)
    assert (found.answer, found.failure) == (GOOD, None)
    assert found.reward == DOMAIN.score(ITEM, DOMAIN.spec.references[0].answer).reward > 0
    assert sorted(turn.text for turn in turns) == sorted((OTHER, GOOD, "hm", GOOD, OTHER.replace("7", "9")))
    assert [turn.failure for turn in turns] == [OUTVOTED, f"{OUTVOTED} parse", OUTVOTED, OUTVOTED, ""]
    assert [turn.outvoted for turn in turns] == [True, True, True, True, False]
    assert turns[-1].text == GOOD
    assert [turn.reward for turn in turns] == [0.0] * 4 + [found.reward]
    assert found.step_rewards == (found.reward,)  # one step was taken, however many voted on it
    assert found.completion_tokens == sum(len(turn.completion_ids) for turn in turns)
    assert len({turn.messages for turn in turns}) == 1


def test_votes_are_drawn_apart_and_a_greedy_slot_is_greedy_in_the_first_alone(sandbox, tmp_path):
    engine = ScriptedEngine(lambda *_: GOOD)
    play(sandbox, tmp_path, engine, GREEDY, votes=3, temperature=0.9)
    assert [(sampling.temperature, seeds) for sampling, seeds, _ in engine.calls] == [
        (0.0, (100,)),
        (0.9, (seed_for(100, "vote", 1),)),
        (0.9, (seed_for(100, "vote", 2),)),
    ]


def test_without_votes_nothing_is_drawn_otherwise_than_before(sandbox, tmp_path):
    engine = ScriptedEngine(lambda *_: GOOD)
    _, turns = play(sandbox, tmp_path, engine, SAMPLED)
    assert [seeds for _, seeds, _ in engine.calls] == [(100,)]
    assert len(turns) == 1


def test_where_no_vote_can_be_read_the_next_try_votes_again(sandbox, tmp_path):
    engine = in_turn("a", "b", "c", OTHER, GOOD, OTHER)
    found, turns = play(sandbox, tmp_path, engine, SAMPLED, votes=3, attempts=2)
    assert found.answer == OTHER
    lost = f"{OUTVOTED} parse"
    assert [turn.failure for turn in turns] == [lost, lost, "parse", OUTVOTED, OUTVOTED, ""]
    assert found.step_rewards == (found.reward,)  # neither a vote nor a try is a step
    assert turns[-1].text == OTHER

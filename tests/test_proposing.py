"""Drafting and editing: what is stored, what fails as a fact, and what a proposer can never see."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from scripted import GOOD, ScriptedEngine, Tape, confined, ports, small_domain

from given import requested
from resia.agents import proposing, rollout, taskwork
from resia.agents.episode import chat
from resia.agents.operators import CATALOGUE, applicable
from resia.domains.base import Answer, Item, Score
from resia.events import (
    Candidate,
    CandidateAccepted,
    DraftFailed,
    EditFailed,
    EditRequested,
    EvaluationRequested,
    GateReport,
    HarnessDrafted,
    HarnessEdited,
    RolloutRecorded,
    RolloutsRequested,
    Slot,
    Split,
    decode_harness,
)
from resia.events.errors import BlobError
from resia.runtime.blobs import DirectoryBlobs

INNER = small_domain()
SPLITS: tuple[Split, ...] = ("search", "validation", "test")
GOLD = "GOLD-7f3a"
FIRST = proposing.first_harness(INNER.spec)


class MarkedDomain:
    """A domain whose secrets can be recognised: prompts of sealed splits, and gold of every item, carry marks.

    Implements resia.domains.base.Domain over the real one. The gold appears where scoring may put it: in the detail
    and the metrics of a score, and in the controls.
    """

    def __init__(self) -> None:
        self.spec, self.digest = INNER.spec, INNER.digest

    def items(self, split: Split) -> tuple[Item, ...]:
        return tuple(Item(i.id, split, f"{i.prompt} MARK-{split}-{i.id}") for i in INNER.items(split))

    def parse(self, request: Mapping[str, object]) -> dict[str, str | int | float | bool]:
        return INNER.parse(request)

    def render(self, answer: Answer) -> str:
        return INNER.render(answer)

    def score(self, item: str, answer: Answer) -> Score:
        found = INNER.score(item, answer)
        return msgspec.structs.replace(found, detail=f"{GOLD}-{item}", metrics={f"{GOLD}-{item}": 1.0})

    def controls(self, budget: int, seed: int):
        return INNER.controls(budget, seed)


DOMAIN = MarkedDomain()


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "blobs")


def drafted(tape: Tape, blobs) -> HarnessDrafted:
    (fact,) = tape.add(requested())
    ((event,),) = proposing.draft(fact, DOMAIN, blobs)
    tape.add(event, cause=fact.envelope.id)
    return event


def measured(tape: Tape, blobs, sandbox, harness, engine) -> str:
    """The id of an evaluation of `harness` on every item of every split, sampled for real."""
    candidate = Candidate(harness)
    sampled = [Slot("search", item.id, n, n) for item in DOMAIN.items("search") for n in range(3)]
    greedy = [Slot(split, item.id, 9, 9, True) for split in SPLITS for item in DOMAIN.items(split)]
    (asked,) = tape.add(EvaluationRequested("candidate", 0, candidate, (*sampled, *greedy)))
    for shard, slots in enumerate((sampled, greedy)):
        request = RolloutsRequested(asked.envelope.id, "candidate", candidate, tuple(slots), shard, 2)
        (fact,) = tape.add(request)
        (batch,) = rollout.sample_shard(tape.state, fact, DOMAIN, ports(engine, sandbox, blobs, []))
        tape.add(*batch, cause=fact.envelope.id)
    return asked.envelope.id


def edited(tape: Tape, blobs, parent, evaluation: str, *operators: str):
    (fact,) = tape.add(EditRequested(1, parent, operators, evaluation, {}))
    ((event,),) = proposing.edit(tape.state, fact, DOMAIN, blobs)
    tape.add(event, cause=fact.envelope.id)
    return fact, event


@pytest.fixture
def run(blobs, sandbox):
    """A tape with generation 0 drafted and measured with distinct valid answers: (tape, draft, evaluation, engine)."""
    tape = Tape()
    draft = drafted(tape, blobs)
    engine = ScriptedEngine(lambda prompt, seed: GOOD.replace("knn=5", f"knn={seed + 3}"))
    return tape, draft, measured(tape, blobs, sandbox, draft.harness, engine), engine


# -- the draft -------------------------------------------------------------------------------------------------------


def test_generation_0_is_stored_and_says_what_may_change_it(blobs):
    event = drafted(Tape(), blobs)
    harness = decode_harness(blobs.get(event.harness))
    assert harness == proposing.first_harness(DOMAIN.spec)
    assert event.components == harness.component_digests()
    assert event.harness.digest == harness.digest()
    assert "demonstrate-neutral" in event.applicable


def test_the_draft_leaves_room_for_every_known_answer():
    policy = proposing.first_harness(DOMAIN.spec).retry_policy
    assert policy.max_new_tokens > max(len(DOMAIN.render(r.answer).encode()) for r in DOMAIN.spec.references)


class FullBlobs(DirectoryBlobs):
    def put(self, data, media="application/octet-stream"):
        raise BlobError("the disk is full")


def test_a_draft_that_cannot_be_stored_is_tried_again_and_no_fact(tmp_path):
    """The store failed, not the drafting: the worker comes back to the request."""
    (fact,) = Tape().add(requested())
    with pytest.raises(BlobError, match="the disk is full"):
        list(proposing.draft(fact, DOMAIN, FullBlobs(tmp_path)))


class Bare(MarkedDomain):
    def __init__(self) -> None:
        super().__init__()
        self.spec = msgspec.structs.replace(INNER.spec, references=())


def test_a_domain_without_a_reference_cannot_be_drafted_for_and_that_is_a_fact(blobs):
    (fact,) = Tape().add(requested())
    ((event,),) = proposing.draft(fact, Bare(), blobs)
    assert isinstance(event, DraftFailed)
    assert "names no reference implementation" in event.error


# -- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(applicable(FIRST, INNER)))
def test_every_operator_makes_a_child_that_differs_in_its_component(run, blobs, name):
    tape, draft, evaluation, _ = run
    fact, event = edited(tape, blobs, draft.harness, evaluation, name)
    assert isinstance(event, HarnessEdited)
    assert (event.request, event.parent, event.operator) == (fact.envelope.id, draft.harness, name)
    changed = [c for c in draft.components if draft.components[c] != event.components[c]]
    assert changed == [event.component] == [CATALOGUE[name].component]
    assert decode_harness(blobs.get(event.harness)).component_digests() == event.components


def test_the_first_operator_that_changes_the_parent_is_taken(run, blobs):
    tape, draft, evaluation, _ = run
    _, event = edited(
        tape, blobs, draft.harness, evaluation, "shorten-instruction", "format-contract", "longer-answers"
    )
    assert event.operator == "format-contract"


def test_an_edit_that_changes_nothing_is_a_fact(run, blobs):
    tape, draft, evaluation, _ = run
    fact, event = edited(tape, blobs, draft.harness, evaluation, "shorten-instruction")
    assert event == EditFailed(fact.envelope.id, 1, ("shorten-instruction",), "no operator changes this harness")


def test_a_lost_trajectory_stops_the_edit_and_is_no_fact(run, tmp_path):
    tape, draft, evaluation, _ = run
    with pytest.raises(BlobError, match="is missing"):
        edited(tape, DirectoryBlobs(tmp_path / "other"), draft.harness, evaluation, "format-contract")


def test_the_same_edit_made_twice_is_the_same(run, blobs):
    tape, draft, evaluation, _ = run
    fact, event = edited(tape, blobs, draft.harness, evaluation, "demonstrate-best")
    ((again,),) = proposing.edit(tape.state, fact, DOMAIN, blobs)
    assert again == event


# -- nothing is measured twice ---------------------------------------------------------------------------------------


def closed(tape: Tape, blobs, sandbox, harness, engine) -> str:
    evaluation = measured(tape, blobs, sandbox, harness, engine)
    tape.add(taskwork.close(tape.state.evaluations[evaluation]))
    return evaluation


def crowned(tape: Tape, evaluation: str) -> None:
    tape.add(CandidateAccepted(evaluation, None, GateReport(1, 0.05, 3, 0.01, 0.1, 0.0, 0.2, "exact", None, "better")))


def test_an_edit_that_leads_back_to_a_measured_harness_is_recognised_and_the_next_is_made(run, blobs, sandbox):
    """Tolerant extraction undoes last-mention: from the second, the first leads to what has been measured."""
    tape, draft, evaluation, engine = run
    crowned(tape, evaluation)
    _, tolerant = edited(tape, blobs, draft.harness, evaluation, "tolerant-extraction")
    closed(tape, blobs, sandbox, tolerant.harness, engine)
    _, last = edited(tape, blobs, draft.harness, evaluation, "last-mention")
    now = closed(tape, blobs, sandbox, last.harness, engine)
    crowned(tape, now)
    _, event = edited(tape, blobs, last.harness, now, "tolerant-extraction", "format-contract")
    assert (event.operator, event.known) == ("format-contract", {"tolerant-extraction": tolerant.harness.digest})
    two = tape.state.origins[tolerant.harness.digest]
    assert [(o.operator, o.parent, o.measured) for o in two] == [
        ("tolerant-extraction", draft.harness.digest, True),
        ("tolerant-extraction", last.harness.digest, False),
    ]
    assert tape.state.harnesses[tolerant.harness.digest] == tolerant  # one harness, with both ways to it


def test_where_every_edit_leads_to_a_measured_harness_the_edit_fails_and_says_so(run, blobs, sandbox):
    tape, draft, evaluation, engine = run
    crowned(tape, evaluation)
    _, event = edited(tape, blobs, draft.harness, evaluation, "format-contract")
    closed(tape, blobs, sandbox, event.harness, engine)
    fact, failed = edited(tape, blobs, draft.harness, evaluation, "shorten-instruction", "format-contract")
    digest = event.harness.digest
    why = f"every harness that is left to make was measured before: format-contract ({digest[:12]})"
    operators = ("shorten-instruction", "format-contract")
    assert failed == EditFailed(fact.envelope.id, 1, operators, why, {"format-contract": digest})


def test_a_harness_that_was_measured_with_other_weights_is_measured_with_these(run, blobs, sandbox):
    tape, draft, evaluation, engine = run
    _, event = edited(tape, blobs, draft.harness, evaluation, "format-contract")
    closed(tape, blobs, sandbox, event.harness, engine)
    adapter = blobs.put(b"weights")
    (asked,) = tape.add(EvaluationRequested("candidate", 0, Candidate(draft.harness, adapter), ()))
    crowned(tape, asked.envelope.id)
    assert proposing.measured_harnesses(tape.state) == frozenset()
    _, again = edited(tape, blobs, draft.harness, evaluation, "format-contract")
    assert (again.harness, again.known) == (event.harness, {})


# -- what stays hidden -----------------------------------------------------------------------------------------------


def sealed_marks() -> list[str]:
    return [f"MARK-{split}-" for split in ("validation", "test")]


def test_the_marks_are_where_a_leak_would_show(run):
    tape, _, _, engine = run
    recorded = [f.event for f in tape.facts if isinstance(f.event, RolloutRecorded)]
    assert {r.split for r in recorded} == set(SPLITS)
    assert all(GOLD in r.detail for r in recorded if not r.reused)
    assert {m for m in ("MARK-search-", *sealed_marks()) if any(m in x.content for x in engine.messages)} == {
        "MARK-search-",
        *sealed_marks(),
    }


def test_a_proposer_sees_search_rollouts_alone_and_no_gold(run, blobs):
    tape, _, evaluation, _ = run
    view = proposing.search_view(tape.state, evaluation, DOMAIN, blobs)
    assert len(view.rollouts) == 4 * len(DOMAIN.items("search"))
    assert {s.item for s in view.rollouts} == {i.id for i in DOMAIN.items("search")}
    assert view.prompts == tuple(i.prompt for i in DOMAIN.items("search"))
    shown = repr(view)
    assert not [mark for mark in (GOLD, *sealed_marks()) if mark in shown]


def test_no_harness_ever_holds_a_sealed_prompt_or_gold(run, blobs, sandbox):
    """Every operator on top of all others, each child measured on every split before the next edit."""
    tape, draft, evaluation, engine = run
    parent, harnesses = draft.harness, [blobs.get(draft.harness).decode()]
    for name in CATALOGUE:
        _, event = edited(tape, blobs, parent, evaluation, name)
        if isinstance(event, HarnessEdited):
            parent = event.harness
            harnesses.append(blobs.get(parent).decode())
            evaluation = measured(tape, blobs, sandbox, parent, engine)
    needs_tools = {"attempt-first", "classify-labels", "shortlist-labels"}
    assert len(harnesses) == len(CATALOGUE) - len(needs_tools) + 1
    assert not [mark for text in harnesses for mark in (GOLD, *sealed_marks()) if mark in text]
    assert any("MARK-search-" in text for text in harnesses)  # demonstrations do show search prompts


def test_a_model_reads_an_items_own_prompt_search_demonstrations_and_no_gold(run, blobs, sandbox):
    tape, draft, evaluation, _ = run
    _, event = edited(tape, blobs, draft.harness, evaluation, "demonstrate-best")
    harness = decode_harness(blobs.get(event.harness))
    for split in SPLITS:
        for item in DOMAIN.items(split):
            *shown, own = chat(harness, item.prompt)
            assert (own.role, own.content) == ("user", item.prompt)
            before = " ".join(message.content for message in shown)
            assert not [mark for mark in (GOLD, *sealed_marks()) if mark in before]
            assert [m.role for m in shown] == ["system", *["user", "assistant"] * ((len(shown) - 1) // 2)]
    engine = ScriptedEngine(lambda *_: GOOD)
    measured(tape, blobs, sandbox, event.harness, engine)
    assert not [m for m in engine.messages if GOLD in m.content]

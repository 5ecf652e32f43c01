"""A moment of a run: whose harness and adapter it was, and the files that hold them."""

from __future__ import annotations

import json

import msgspec
import pytest
from trainer_given import tiny_model, tiny_policy

from histories import World, play, run_request
from resia.events import Candidate, CandidateAccepted, DecisionMade, HarnessEdited, decode_harness
from resia.events.errors import BlobError, UsageError
from resia.replay.digest import digest
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.moment import export, harness_of, moment_of, texts
from resia.runtime.reading import Log

HISTORY = play(run_request(patience_h=1, max_iterations=4), World(training=0.3), run="moments")
LOG = Log("moments", HISTORY.facts)
FILES = {"harness.json", "system_prompt.txt", "dispatch.py", "extract.py", "retry_policy.json", "moment.json"}


def moment(sequence=None):
    state = LOG.at(sequence)
    return moment_of("moments", state, digest(state))


def first(cls):
    return next(fact.sequence for fact in HISTORY.facts if isinstance(fact.event, cls))


@pytest.fixture
def blobs(tmp_path):
    there = DirectoryBlobs(tmp_path / "blobs")
    for data in HISTORY.blobs.values():
        there.put(data)
    return there


def trained(blobs):
    """The last state with an adapter that a policy wrote, and that policy."""
    policy = tiny_policy()
    state = HISTORY.state
    candidate = Candidate(state.champion.candidate.harness, blobs.put(policy.adapter_bytes()))
    champion = msgspec.structs.replace(state.champion, candidate=candidate)
    return msgspec.structs.replace(state, champion=champion), policy


def test_before_the_first_champion_there_is_none():
    crowned = first(CandidateAccepted)
    assert moment(crowned - 1) is None
    found = moment(crowned)
    assert (found.event, found.iteration, found.adapter, found.edits) == (crowned, 0, None, ())


def test_it_is_the_champion_of_that_moment_with_its_descent():
    assert HISTORY.of(CandidateAccepted)[1:]  # something was accepted after the baseline
    for fact in HISTORY.facts:
        if not isinstance(fact.event, DecisionMade):
            continue
        found, state = moment(fact.sequence), LOG.at(fact.sequence)
        assert found.harness == state.champion.candidate.harness.digest
        assert found.state == digest(state)
        assert found.components == HISTORY.harness(found.harness).component_digests()
        assert [edit.digest for edit in found.edits][-1:] in ([], [found.harness])
        assert (found.adapter is None) == (found.updates == ())
    assert moment().updates or moment().edits


def test_edits_are_named_in_order(blobs):
    gains = {"demonstrate-neutral": 0.3, "demonstrate-best": 0.2}
    history = play(run_request(mode="H", patience_h=3), World(operators=gains), run="edits")
    state = history.state
    found = moment_of("edits", state, digest(state))
    accepted = [event.operator for event in history.of(HarnessEdited)]
    assert [edit.operator for edit in found.edits] == accepted
    assert len(accepted) == 2
    for data in history.blobs.values():
        blobs.put(data)
    steps = [f"{name} on system_prompt (iteration {n})" for n, name in enumerate(accepted, 1)]
    assert f"harness: draft -> {steps[0]} -> {steps[1]}" in texts(found, harness_of(state, blobs))


def test_the_text_shows_the_prompt_whole(blobs):
    shown = texts(moment(), harness_of(HISTORY.state, blobs))
    prompt = harness_of(HISTORY.state, blobs).system_prompt.text
    assert [f"  {line}" for line in prompt.splitlines()] == shown[-len(prompt.splitlines()) :]


def test_the_folder_holds_the_harness_as_it_was(blobs, tmp_path):
    folder, state = tmp_path / "deep" / "out", LOG.at(first(CandidateAccepted))
    export(LOG, state, moment(state.sequence), blobs, folder)
    assert {path.name for path in folder.iterdir()} == FILES
    harness = decode_harness((folder / "harness.json").read_bytes())
    assert harness.digest() == state.champion.candidate.harness.digest
    assert (folder / "system_prompt.txt").read_text() == harness.system_prompt.text
    assert (folder / "dispatch.py").read_text() == harness.tool_dispatch
    assert (folder / "extract.py").read_text() == harness.answer_extraction
    assert json.loads((folder / "retry_policy.json").read_text())["max_new_tokens"] == 32
    said = json.loads((folder / "moment.json").read_text())
    assert (said["run"], said["event"], said["harness"]) == ("moments", state.sequence, harness.digest())
    assert not list(folder.parent.glob(".*"))


def test_peft_loads_the_adapter_and_it_is_the_policy(blobs, tmp_path):
    import torch
    from peft import PeftModel

    state, policy = trained(blobs)
    export(LOG, state, moment_of("moments", state, digest(state)), blobs, tmp_path / "out")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "out" / "adapter")
    tokens = torch.arange(12)[None, :]
    with torch.no_grad():
        ours, base = policy.model(input_ids=tokens).logits, tiny_model()(input_ids=tokens).logits
        theirs = loaded(input_ids=tokens).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, base)
    assert json.loads((tmp_path / "out" / "moment.json").read_text())["adapter"] == policy_digest(state)


def policy_digest(state):
    return state.champion.candidate.adapter.digest


def test_an_empty_folder_is_filled(blobs, tmp_path):
    (tmp_path / "out").mkdir()
    export(LOG, LOG.at(first(CandidateAccepted)), moment(first(CandidateAccepted)), blobs, tmp_path / "out")
    assert (tmp_path / "out" / "moment.json").exists()


def test_a_folder_with_something_in_it_is_left_alone(blobs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UsageError, match="out is not empty: name another folder with --out"):
        export(LOG, HISTORY.state, moment(), blobs, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_is_no_folder(blobs, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="out is a file"):
        export(LOG, HISTORY.state, moment(), blobs, tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be written"):
        export(
            LOG,
            LOG.at(first(CandidateAccepted)),
            moment(first(CandidateAccepted)),
            blobs,
            tmp_path / "out" / "below",
        )


@pytest.mark.parametrize("what", ["harness", "adapter"])
def test_a_blob_that_is_missing_leaves_nothing(blobs, tmp_path, what):
    state, _ = trained(blobs)
    blob = getattr(state.champion.candidate, what)
    blobs.path(blob).unlink()
    with pytest.raises(BlobError, match=f"blob {blob.digest[:12]} .* is missing"):
        export(LOG, state, moment_of("moments", state, digest(state)), blobs, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"blobs"}


def test_no_champion_names_the_event_from_which_there_is_one(blobs, tmp_path):
    with pytest.raises(UsageError, match=f"no champion at event 2 to export: take --at {first(CandidateAccepted)}"):
        export(LOG, LOG.at(2), None, blobs, tmp_path / "out")
    begun = Log("begun", HISTORY.facts[:2])
    with pytest.raises(UsageError, match="wait until its baseline is measured"):
        export(begun, begun.at(), None, blobs, tmp_path / "out")

"""The compute depth over a real run on a tiny taught model: every request performed again, and every change named."""

from __future__ import annotations

import asyncio
import os
import shutil

import msgspec
import pytest

from resia.events import (
    ControlMeasured,
    Fact,
    HarnessDrafted,
    HarnessEdited,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RoundRequested,
    RoundTrained,
    RunRequested,
    ShardSampled,
    StepTrained,
    TrainingFailed,
    decode_trajectory,
)
from resia.runtime.blobcheck import blob_problems
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.config import load_settings
from resia.runtime.reading import load
from resia.runtime.recompute import performances, recompute
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch
from resia.runtime.store import Store

SETTINGS = [
    "domain_options.synthetic=true",
    "domain_options.search_items=3",
    "domain_options.test_items=2",
    "engine.threads=1",
    "loop.mode=W+H",
    "loop.patience_h=1",
    "loop.patience_w=1",
    "loop.max_iterations=2",
    "selection.format_failures_doubles_patience=1.0",
    "sampling.group_size=8",
    "training.rank=4",
    "training.rounds=2",
    "training.steps_per_round=2",
    "training.checkpoint_every=1",
    "training.group_size=8",
    "seed=3",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import tiny_agent

    model = tiny_agent.unpack(tmp_path_factory.mktemp("taught"))
    there = Store(tmp_path_factory.mktemp("recompute"))
    settings = load_settings(None, [*SETTINGS, f"engine.model={model}"])
    asyncio.run(launch(Session("again", settings, there, DEFAULT_WORKERS), Watch()))
    return there


@pytest.fixture(scope="module")
def log(store):
    return asyncio.run(load(store, "again"))


def index_of(log, cls, nth=0):
    return [n for n, fact in enumerate(log.facts) if isinstance(fact, Fact) and isinstance(fact.event, cls)][nth]


def with_event(log, index, event):
    fact = msgspec.structs.replace(log.facts[index], event=event)
    return log._replace(facts=(*log.facts[:index], fact, *log.facts[index + 1 :]))


def changed(log, index, **changes):
    return with_event(log, index, msgspec.structs.replace(log.facts[index].event, **changes))


def perform(log, index, blobs):
    """Perform again the request that event `index` of the log came from."""
    id_ = log.facts[index].envelope.id
    works = [work for work in performances(log) if id_ in work.recorded]
    assert len(works) == 1
    return recompute(log, blobs, works)


def files(store):
    return {p: p.stat().st_mtime_ns for p in (store.folder / "blobs").rglob("*")}


def test_a_whole_run_comes_out_again_bit_for_bit_and_nothing_is_written(store, log):
    works, before, heard = performances(log), files(store), []
    found = recompute(log, store.blobs(), works, heard=lambda *said: heard.append(said))
    assert (found.problems, found.not_comparable) == ((), ())
    assert found.performed == {
        "control-requested": 1,
        "edit-requested": 1,
        "rollouts-requested": len([w for w in works if isinstance(w.request.event, RolloutsRequested)]),
        "round-requested": 2,
        "run-requested": 1,
    }
    assert sum(found.performed.values()) == len(works)
    assert [done for _, done, _ in heard] == list(range(len(works) + 1))
    assert files(store) == before


def test_what_is_performed_can_be_chosen(log):
    assert {type(w.request.event) for w in performances(log, "training")} == {RoundRequested}
    assert {type(w.request.event) for w in performances(log, "sampling")} == {RolloutsRequested}
    last = performances(log)[3].outcome.sequence
    assert [w.outcome.sequence for w in performances(log, up_to=last)] == sorted(
        w.outcome.sequence for w in performances(log) if w.outcome.sequence <= last
    )


def other_blob(log, cls, field):
    """The blob of another event of the class."""
    return getattr(log.facts[index_of(log, cls, 1)].event, field)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (RoundTrained, "adapter", other_blob),
        (RoundTrained, "reward_mean", 0.25),
        (StepTrained, "loss", 7.0),
        (RolloutRecorded, "answer", "knn=9"),
        (RolloutRecorded, "reward", 0.75),
        (RolloutRecorded, "trajectory", other_blob),
        (ShardSampled, "completion_tokens", 1),
        (HarnessDrafted, "rationale", "because"),
        (HarnessEdited, "rationale", "because"),
        (ControlMeasured, "scores", ()),
    ],
)
def test_whatever_is_not_what_comes_out_is_named_with_its_event(store, log, cls, field, value):
    index = index_of(log, cls)
    value = other_blob(log, cls, field) if value is other_blob else value
    found = perform(changed(log, index, **{field: value}), index, store.blobs())
    assert [(p.sequence, p.kind) for p in found.problems] == [(index + 1, "compute")]
    (problem,) = found.problems
    fact = log.facts[index]
    about = f"{fact.envelope.producer.role} {fact.envelope.producer.package} wrote {fact.envelope.type} with {field}"
    assert problem.why.startswith(about)
    assert "on replay performing it again gives" in problem.why
    assert found.not_comparable == ()


def test_where_two_trajectories_part_is_said(store, log, tmp_path):
    index = index_of(log, RolloutRecorded)
    event, overlay = log.facts[index].event, tmp_path / "blobs"
    shutil.copytree(store.folder / "blobs", overlay)
    blobs = DirectoryBlobs(overlay)
    trajectory = decode_trajectory(blobs.get(event.trajectory))
    turn = msgspec.structs.replace(trajectory.turns[0], completion_ids=(7, *trajectory.turns[0].completion_ids[1:]))
    forged = msgspec.structs.replace(trajectory, turns=(turn, *trajectory.turns[1:]))
    blob = blobs.put(forged.encoded(), event.trajectory.media)
    found = perform(changed(log, index, trajectory=blob), index, blobs)
    assert "(in turn 0, completion_ids[0] is 7, here " in found.problems[0].why
    assert list(blob_problems(changed(log, index, trajectory=blob).facts, blobs)) == []  # only the model can tell


def test_a_clock_may_say_another_time(store, log):
    for cls, field in ((ShardSampled, "seconds"), (StepTrained, "tokens_per_s")):
        index = index_of(log, cls)
        assert perform(changed(log, index, **{field: 1e9}), index, store.blobs()).problems == ()


# -- what cannot be compared here ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (RoundTrained, "model_digest", "f" * 64),
        (RoundTrained, "dtype", "bfloat16"),
        (RoundTrained, "threads", (os.cpu_count() or 1) + 1),
        (RoundTrained, "instruction_set", "NEON"),
        (RoundTrained, "package", "0.0.1"),
        (ShardSampled, "sandbox_tier", "bubblewrap"),
        (ShardSampled, "package", "9.9"),
    ],
)
def test_another_machine_is_no_divergence(store, log, cls, field, value):
    index = index_of(log, cls)
    manifest = log.facts[index].event.manifest
    here = str(getattr(manifest, field)) if field != "threads" else str(os.cpu_count())
    other = changed(log, index, manifest=msgspec.structs.replace(manifest, **{field: value}), **wrong(cls))
    found = perform(other, index, store.blobs())
    assert (found.performed, found.problems) == ({}, ())
    (unsaid,) = found.not_comparable
    assert (unsaid.sequence, unsaid.type) == (index + 1, log.facts[index].envelope.type)
    assert unsaid.fields == {field: (str(value), here)}
    old, new = (text[:12] if field == "model_digest" else text for text in (str(value), here))
    assert f"{field} {old} there, {new} here" in unsaid.why


def wrong(cls):
    """A change that would be a divergence if it were compared."""
    return {"tokens": 1} if cls is RoundTrained else {"prompt_tokens": 1}


def test_other_data_are_no_divergence_and_training_needs_none(store, log):
    other = changed(log, 0, domain_digest="e" * 64)
    for cls in (HarnessDrafted, ControlMeasured, ShardSampled):
        (unsaid,) = perform(other, index_of(log, cls), store.blobs()).not_comparable
        assert unsaid.fields == {"domain_digest": ("e" * 64, log.facts[0].event.domain_digest)}
    trained = perform(other, index_of(log, RoundTrained), store.blobs())
    assert (trained.performed, trained.not_comparable) == ({"round-requested": 1}, ())


def test_a_model_that_is_not_here_is_said_for_every_request_that_needs_it(store, log):
    settings = log.facts[0].event.settings
    engine = msgspec.structs.replace(settings.engine, model="nowhere")
    other = changed(log, 0, settings=msgspec.structs.replace(settings, engine=engine))
    (unsaid,) = perform(other, index_of(log, ShardSampled), store.blobs()).not_comparable
    assert unsaid.fields["model_digest"] == (log.facts[0].event.model_digest, "")


def test_a_failed_engine_is_not_asked_to_fail_again(store, log):
    index = index_of(log, RolloutRecorded)
    event = log.facts[index].event
    about = (event.evaluation, event.purpose, event.round, event.split, event.item, event.index)
    failed = with_event(log, index, RolloutFailed(*about, "out of memory"))
    (unsaid,) = perform(failed, index, store.blobs()).not_comparable
    assert "had failed" in unsaid.why


def test_a_training_that_failed_there_and_not_here_is_not_comparable(store, log):
    index = index_of(log, RoundTrained)
    event = log.facts[index].event
    failed = TrainingFailed(event.training, 1, event.algorithm, event.round, 0, "out of memory")
    (unsaid,) = perform(with_event(log, index, failed), index, store.blobs()).not_comparable
    assert "it had failed (out of memory)" in unsaid.why


def test_a_round_that_another_worker_went_on_with_is_computed_from_its_beginning(store, log):
    """Its checkpoint is not believed: one that names other weights changes nothing of what comes out."""
    first, last = index_of(log, StepTrained), index_of(log, RoundTrained)
    step, other = log.facts[first], log.facts[index_of(log, RoundTrained, 1)].event
    assert step.event.checkpoint.manifest == other.manifest
    wrong = msgspec.structs.replace(step.event.checkpoint, adapter=other.adapter, optimizer=other.optimizer)
    resumed = changed(log, first, checkpoint=wrong)
    for index in range(first + 1, last + 1):
        fact = log.facts[index]
        envelope = msgspec.structs.replace(fact.envelope, basis=step.sequence)
        facts = list(resumed.facts)
        facts[index] = msgspec.structs.replace(fact, envelope=envelope)
        resumed = resumed._replace(facts=tuple(facts))
    found = perform(resumed, last, store.blobs())
    assert (found.performed, found.problems, found.not_comparable) == ({"round-requested": 1}, (), ())


def test_a_lost_batch_is_said(store, log, tmp_path):
    blobs = DirectoryBlobs(tmp_path / "empty")
    (unsaid,) = perform(log, index_of(log, RoundTrained), blobs).not_comparable
    assert "is missing from" in unsaid.why


def test_an_inner_adapter_that_was_dropped_is_made_again(store, log, tmp_path):
    shutil.copytree(store.folder / "blobs", tmp_path / "blobs")
    inner = log.facts[index_of(log, RoundTrained)].event.adapter.digest
    (tmp_path / "blobs" / inner[:2] / inner).unlink()
    found = recompute(log, DirectoryBlobs(tmp_path / "blobs"), performances(log, "training"))
    assert (found.performed, found.problems, found.not_comparable) == ({"round-requested": 2}, (), ())


def test_a_request_that_the_log_could_not_have_held_is_named(store, log):
    index = index_of(log, RoundRequested)
    found = perform(changed(log, index, training="nowhere"), index_of(log, RoundTrained), store.blobs())
    assert "performing it again fails: KeyError" in found.problems[0].why


def test_a_request_still_open_is_left_alone(log):
    index = index_of(log, RoundTrained)
    assert isinstance(log.facts[0].event, RunRequested)
    begun = log._replace(facts=log.facts[:index])
    assert not performances(begun, "training")


# -- bytes -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_an_adapter_is_named_with_its_event(store, log, tmp_path):
    shutil.copytree(store.folder / "blobs", tmp_path / "blobs")
    index = index_of(log, RoundTrained)
    digest = log.facts[index].event.adapter.digest
    path = tmp_path / "blobs" / digest[:2] / digest
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = blob_problems(log.facts, DirectoryBlobs(tmp_path / "blobs"))
    assert (problem.sequence, problem.kind) == (index + 1, "blob")
    assert digest[:12] in problem.why


@pytest.mark.parametrize(("field", "value"), [("reward", 0.875), ("answer", "knn=9"), ("prompt_tokens", 1)])
def test_a_rollout_that_its_trajectory_contradicts_is_named(store, log, field, value):
    index = index_of(log, RolloutRecorded, 2)
    (problem,) = blob_problems(changed(log, index, **{field: value}).facts, store.blobs())
    assert (problem.sequence, problem.kind) == (index + 1, "blob")
    assert problem.why.startswith(f"it says {field} {value!r}, its trajectory")

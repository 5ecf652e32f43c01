"""A training over several ranks: the same bytes as by one process, and no rank that waits for ever."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from trainer_given import SETTINGS, random_rollouts

from given import BLOB, FAILED, drafts_of
from histories import run_request
from resia.events import (
    AdapterTrained,
    Candidate,
    EngineSettings,
    EvaluationRequested,
    RolloutRecorded,
    RoundTrained,
    Slot,
    TrainingFailed,
    TrainingRequested,
)
from resia.events.errors import UsageError
from resia.runtime.assets import model_digest
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.ranks import Place, place_here
from resia.runtime.reading import load
from resia.runtime.recompute import performances, recompute
from resia.runtime.session import parse_workers
from resia.runtime.store import Store

torch = pytest.importorskip("torch")
from resia.runtime.engines.tiny import build_tiny_model  # noqa: E402 - it needs torch

RUN = "ranks"
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What every rank of every scene had to tell: scene -> list by rank; None of a rank that died."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    script = str(TESTS / "rank_groups.py")
    done = subprocess.run([sys.executable, script, str(folder)], env=environment, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()

    def by_rank(scene: Path) -> list:
        found = {int(path.stem): json.loads(path.read_text()) for path in scene.glob("*.json")}
        return [found.get(rank) for rank in range(3)]

    return {scene.name: by_rank(scene) for scene in folder.iterdir()}


@pytest.fixture(scope="module")
def alone():
    """The same rounds by one process."""
    from rank_groups import EXACT, EXPERTS, SINGLE, all_of

    torch.set_num_threads(1)
    rounds = {"float64": EXACT, "float32": SINGLE, "experts": EXPERTS}
    return {kind: all_of(kind, chosen) for kind, chosen in rounds.items()}


@pytest.mark.parametrize(("scene", "dtype"), [("two in float64", "float64"), ("three in float32", "float32")])
def test_ranks_together_make_the_bytes_of_one_process(told, alone, scene, dtype):
    """Also where there are fewer micro-batches than ranks, and for every algorithm with its losses and norms."""
    together, *others = told[scene]
    assert together.keys() == alone[dtype].keys()
    for name, expected in alone[dtype].items():
        assert together[name] == expected, name
        (first, *_), (second, *_) = expected["steps"]
        assert first != second, name
    assert [other for other in others if other is not None] == [{"ended": True}] * (len(others) - others.count(None))


def test_a_base_spread_over_ranks_trains_to_the_same_bytes_and_each_holds_less(told, alone):
    together, *others = told["spread"]
    for name, expected in alone["float32"].items():
        assert together[name].pop("held") < 0.7 * expected["held"]
        assert together[name] == {key: value for key, value in expected.items() if key != "held"}, name
    assert others == [{"ended": True}, {"ended": True}]


def test_experts_spread_over_ranks_train_alike_without_the_shared_prefix(told, alone):
    """A prefix that is not run apart gives other last bits."""
    together, _, _ = told["spread experts"]
    for name, expected in alone["experts"].items():
        assert together[name]["held"] < expected["held"]
        for found, step in zip(together[name]["steps"], expected["steps"], strict=True):
            assert found == pytest.approx(step, rel=1e-4, abs=1e-5)


def test_a_pass_that_fails_on_one_rank_fails_the_step_on_all_and_they_go_on(told, alone):
    first, second, _ = told["fails"]
    assert first["step"] == 0
    assert first["error"] == "step 0 failed: PassFailed: rank 1: RuntimeError: out of memory"
    assert first["after"] == alone["float32"]["grpo 1"]
    assert second == {"ended": True}


def test_a_round_that_is_given_up_does_not_hold_up_the_next(told, alone):
    first, second, _ = told["abandoned"]
    assert first["after"] == alone["float32"]["grpo 1"]
    assert second == {"ended": True}


async def test_a_trainer_under_accelerate_launch_writes_what_one_process_computes_again(home, tmp_path):
    """Two ranks take a training over from the log; `replay` then performs its rounds in this one process."""
    blobs = DirectoryBlobs(home.folder / "blobs")
    await home.bus.create_run(RUN)
    await home.bus.append(RUN, training_asked_for(blobs, build_tiny_model(tmp_path / "model")))
    process = launched(home.folder, tmp_path / "trainer.log")
    try:
        async with asyncio.timeout(200):
            async for fact in home.bus.read(RUN, follow=True):
                if isinstance(fact.event, AdapterTrained | TrainingFailed):
                    break
            await home.bus.append(RUN, drafts_of(RUN, [FAILED], fact.sequence))
            code = await asyncio.to_thread(process.wait)
    finally:
        process.terminate()
        process.wait()
    assert isinstance(fact.event, AdapterTrained), fact.event
    assert code == 0, (tmp_path / "trainer.log").read_text()
    assert '"rank": 0, "size": 2, "spread": true, "event": "joined"' in (tmp_path / "trainer.log").read_text()
    log = await load(Store(home.folder), RUN)
    works = performances(log)
    assert [type(work.outcome.event) for work in works] == [RoundTrained, RoundTrained]
    found = recompute(log, blobs, works)
    assert (found.problems, found.not_comparable) == ((), ())


def launched(store: Path, log: Path) -> subprocess.Popen:
    """Two ranks on this machine; only the first finds a login."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--use_fsdp", "--num_processes", "2", "--num_machines", "1", "--main_process_port", str(port)]
    command = ["worker", "start", "trainer", "--store", str(store), "--run", RUN]
    accelerate = Path(sys.executable).with_name("accelerate")
    with log.open("w") as sink:
        return subprocess.Popen(
            [accelerate, "launch", *options, "--module", "resia.runtime.cli", *command],
            stdout=sink,
            stderr=sink,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )


def training_asked_for(blobs: DirectoryBlobs, model: Path) -> list:
    """A run whose champion has rollouts, and a training on them in two rounds that no other role is needed for."""
    asked, engine = run_request(), EngineSettings(model=str(model), threads=1)
    chosen = replace(SETTINGS, micro_tokens=30, bon_rounds=2, bon_steps=2)
    settings = replace(asked.settings, engine=engine, training=chosen)
    requested = [
        replace(asked, settings=settings, model_digest=model_digest(model)),
        EvaluationRequested("candidate", 0, Candidate(BLOB), (Slot("search", "s", 0, 0),)),
    ]
    evaluation = drafts_of(RUN, requested)[1].id
    rollouts = [
        RolloutRecorded(
            evaluation, "candidate", 0, "search", r.group, n, n, False, r.reward, r.success, None, "", {}, "",
            (r.reward,), 1, 1, blobs.put(r.trajectory.encoded()),
        )
        for n, r in enumerate(random_rollouts(3))
    ]  # fmt: skip
    training = TrainingRequested(1, "best_of_n", chosen, BLOB, None, evaluation, 7)
    return drafts_of(RUN, [*requested, *rollouts, training])


@pytest.mark.parametrize(("scene", "left"), [("dies", 0), ("hangs", 0), ("leader dies", 1)])
def test_who_is_left_ends_with_a_named_error(told, scene, left):
    assert told[scene][1 - left] is None
    assert told[scene][left]["error"] == "RankLost"
    assert "another rank has ended or is silent" in told[scene][left]["text"]


def test_ranks_of_different_software_refuse_to_begin(told):
    for rank in (0, 1):
        assert told["another version"][rank]["error"] == "WorkerError"
        assert "rank 1 has torch 0.0" in told["another version"][rank]["text"]


def test_a_run_may_leave_the_trainer_to_others():
    assert parse_workers(["trainer=0"])["trainer"] == 0
    with pytest.raises(UsageError, match="role=number of at least 0, such as task=2, not 'trainer=-1'"):
        parse_workers(["trainer=-1"])


def test_the_place_is_what_the_launcher_says():
    assert place_here("trainer", {}) == Place(0, 1)
    assert place_here("task", {"RANK": "0", "WORLD_SIZE": "1"}) == Place(0, 1)
    assert place_here("trainer", {"RANK": "3", "WORLD_SIZE": "4"}) == Place(3, 4)
    fsdp = {"RANK": "3", "WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"}
    assert place_here("trainer", fsdp) == Place(3, 4, spread=True)


@pytest.mark.parametrize(
    ("role", "environment", "sentence"),
    [
        ("trainer", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x' and WORLD_SIZE '2': unset both"),
        ("trainer", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 of WORLD_SIZE 2"),
        ("task", {"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE asks for 2 processes of task, but only the trainer"),
    ],
)
def test_a_place_that_is_none_is_refused_in_one_sentence(role, environment, sentence):
    with pytest.raises(UsageError, match=sentence):
        place_here(role, environment)

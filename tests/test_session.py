"""Whole runs: real processes, a real server, real sampling and training on a tiny taught model.

The same run is made undisturbed, with its workers killed by SIGKILL, interrupted and continued, and with two task
workers; all of them must end in the same state.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest

from given import SETTINGS
from resia.events import AdapterTrained, DecisionMade, Fact, RolloutRecorded, RunCompleted, Skipped
from resia.events.errors import UnknownName, UsageError
from resia.replay.digest import digest
from resia.replay.state import RunState
from resia.runtime.config import load_settings
from resia.runtime.reading import load
from resia.runtime.replaying import verify_log
from resia.runtime.server import running_access
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch, parse_workers
from resia.runtime.store import Store
from resia.runtime.supervisor import Died, Supervisor

RUN = "whole"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The taught model; its weights are kept in bfloat16, as `python tests/tiny_agent.py` wrote them."""
    import tiny_agent

    return tiny_agent.unpack(tmp_path_factory.mktemp("taught"))


def session(folder: Path, model: Path, workers: dict[str, int] | None = None, fresh: bool = True) -> Session:
    settings = load_settings(None, [*SETTINGS, f"engine.model={model}"]) if fresh else None
    return Session(RUN, settings, Store(folder), workers or DEFAULT_WORKERS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[RunState, Store]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return asyncio.run(launch(session(folder, model), Watch())), Store(folder)


class Saboteur:
    """Kills one worker by SIGKILL at the first live progress that `when` picks."""

    def __init__(self, worker: str, when: Callable[[dict[str, Any]], bool]) -> None:
        self._worker, self._when = worker, when
        self._supervisor: Supervisor | None = None
        self.deaths: list[Died] = []
        self.struck = False

    def watch(self) -> Watch:
        return Watch(live=self.live, died=self.deaths.append, started=self.started)

    def started(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def live(self, data: dict[str, Any]) -> None:
        assert self._supervisor is not None
        pid = self._supervisor.pid(self._worker)
        if not self.struck and pid is not None and self._when(data):
            self.struck = True
            os.kill(pid, signal.SIGKILL)


def test_a_run_trains_and_completes(undisturbed):
    state, _ = undisturbed
    assert isinstance(state.ending, RunCompleted)
    assert [d.decision.action for d in state.decisions] == ["train_weights", "stop"]
    outcomes = [t.outcome for t in state.trainings.values()]
    assert all(isinstance(outcome, AdapterTrained) for outcome in outcomes)
    assert len(outcomes) == 1
    assert len(next(iter(state.trainings.values())).rounds) == 2


async def test_it_replays_to_the_same_state_and_every_check_holds(undisturbed):
    state, store = undisturbed
    log = await load(store, RUN)
    assert digest(log.at()) == digest(state)
    assert verify_log(log, store).problems == ()


async def test_no_test_item_is_sampled_before_the_test_is_unsealed(undisturbed):
    _, store = undisturbed
    facts = [f for f in (await load(store, RUN)).facts if isinstance(f, Fact)]
    unsealed = next(f.sequence for f in facts if f.envelope.type == "test-unsealed")
    sampled = [f.sequence for f in facts if isinstance(f.event, RolloutRecorded) and f.event.split == "test"]
    assert sampled
    assert min(sampled) > unsealed


@pytest.mark.parametrize(
    ("worker", "kind"),
    [("trainer-1", "round"), ("task-1", "tokens")],
)
async def test_a_killed_worker_changes_nothing(undisturbed, tmp_path, model, worker, kind):
    saboteur = Saboteur(worker, lambda data: data["kind"] == kind)
    state = await launch(session(tmp_path, model), saboteur.watch())
    assert saboteur.struck
    assert [d.code for d in saboteur.deaths] == [-signal.SIGKILL]
    assert digest(state) == digest(undisturbed[0])


async def test_a_killed_server_comes_back(undisturbed, tmp_path, model):
    struck: list[int] = []
    deaths: list[Died] = []

    def strike(data: dict[str, Any]) -> None:
        if not struck and data["kind"] == "round":
            pid = server_pid(tmp_path)
            struck.append(pid)
            os.kill(pid, signal.SIGKILL)

    state = await launch(session(tmp_path, model), Watch(live=strike, died=deaths.append))
    assert ("nats-server", -signal.SIGKILL, struck[0]) in deaths  # workers may have died of it too
    assert digest(state) == digest(undisturbed[0])


def server_pid(folder: Path) -> int:
    """The process whose command line names this store's configuration."""
    config = str(folder / "server.conf").encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        if config in entry.read_bytes().split(b"\0"):
            return int(entry.parent.name)
    raise AssertionError("no server runs over this store")


async def test_an_interrupted_run_goes_on(undisturbed, tmp_path, model):
    started = asyncio.Event()

    def on_fact(state: RunState, fact: Fact | Skipped) -> None:
        if isinstance(fact, Fact) and isinstance(fact.event, DecisionMade):
            started.set()

    task = asyncio.create_task(launch(session(tmp_path, model), Watch(fact=on_fact)))
    await asyncio.wait_for(started.wait(), 120)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert running_access(tmp_path) is None
    state = await launch(session(tmp_path, model, fresh=False), Watch())
    assert digest(state) == digest(undisturbed[0])


async def test_two_task_workers_and_a_foreign_message_change_nothing(undisturbed, tmp_path, model):
    """Shards are shared between the workers; a message that is no event is skipped by all."""
    sent: list[asyncio.Task[None]] = []

    async def intrude() -> None:
        access = running_access(tmp_path)
        assert access is not None
        client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
        await client.jetstream().publish(f"resia.{RUN}.task.shard-sampled.x", b'{"not": "an event"}')
        await client.close()

    def on_fact(state: RunState, fact: Fact | Skipped) -> None:
        if not sent:
            sent.append(asyncio.create_task(intrude()))

    state = await launch(session(tmp_path, model, {**DEFAULT_WORKERS, "task": 2}), Watch(fact=on_fact))
    assert len(state.skipped) == 1
    assert digest(state) == digest(undisturbed[0])


async def test_a_finished_run_is_sealed_and_cannot_be_started_again(undisturbed, model):
    _, store = undisturbed
    with pytest.raises(UsageError, match=f"run '{RUN}' exists already"):
        await launch(session(store.folder, model), Watch())


async def test_an_unknown_run_cannot_be_resumed(tmp_path):
    with pytest.raises(UnknownName, match="unknown run 'nope'"):
        await launch(Session("nope", None, Store(tmp_path)), Watch())


def test_worker_counts_are_checked():
    assert parse_workers(["task=2"])["task"] == 2
    with pytest.raises(UnknownName, match="did you mean task"):
        parse_workers(["tsk=2"])
    with pytest.raises(UsageError, match="at least 1"):
        parse_workers(["task=0"])

"""Whole runs in mode H whose rollouts come from an endpoint: from the command line, killed, resumed, and replayed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_given import KEY, endpoint, failing, saying
from scripted import ScriptedEngine
from test_chat_server import running
from test_session import Saboteur

from resia.domains.registry import load_domain
from resia.events import (
    DecisionMade,
    DriftRequested,
    Fact,
    RolloutFailed,
    RolloutRecorded,
    RunCompleted,
    RunRequested,
    ShardSampled,
)
from resia.events.errors import BusError
from resia.events.ids import seed_for
from resia.replay.digest import digest
from resia.replay.report import summary
from resia.runtime import supervisor
from resia.runtime.chat_server import ChatServer
from resia.runtime.cli import main
from resia.runtime.cli_options import DONE, USAGE
from resia.runtime.config import load_settings
from resia.runtime.reading import load
from resia.runtime.recompute import performances, recompute
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch
from resia.runtime.store import Store

RUN, KEY_ENV = "remote", "RESIA_TEST_ENGINE_KEY"
OPTIONS = {"synthetic": True, "search_items": 3, "test_items": 2}
WORKERS = {**DEFAULT_WORKERS, "trainer": 0}


def says(prompt: str, seed: int) -> str:
    """A valid line, another for each seed."""
    domain = load_domain("denoising", OPTIONS)
    draw = random.Random(seed_for(seed, prompt))
    return domain.render({p.name: draw.choice(p.choices) for p in domain.spec.parameters})


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with running(ScriptedEngine(says), name="far-model") as made:
        yield made


def settings(server: ChatServer, *more: str) -> list[str]:
    return [
        *(f"domain_options.{name}={str(value).lower()}" for name, value in OPTIONS.items()),
        "loop.mode=H",
        "loop.patience_h=1",
        "loop.max_iterations=2",
        "selection.format_failures_doubles_patience=1.0",
        "sampling.group_size=4",
        "seed=3",
        "endpoint.profile=resia",
        f"endpoint.base_url={server.url}",
        f"endpoint.key_env={KEY_ENV}",
        "endpoint.concurrency=2",
        "engine.model=far-model",
        "engine.threads=1",
        "price.models.far-model.prompt=10.0",
        "price.models.far-model.completion=20.0",
        *more,
    ]


def command(server: ChatServer, store: Path, *more: str) -> list[str]:
    sets = [part for setting in settings(server, *more) for part in ("--set", setting)]
    return ["run", "--run", RUN, "--store", str(store), *sets]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, server) -> Store:
    """As a person starts it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, KEY)
        assert main(command(server, folder)) == DONE
    return Store(folder)


def log_of(store: Store):
    return asyncio.run(load(store, RUN))


def events(store: Store, kind: type) -> list:
    return [f.event for f in log_of(store).facts if isinstance(f, Fact) and isinstance(f.event, kind)]


def test_a_run_edits_and_completes(undisturbed):
    state = log_of(undisturbed).at()
    assert isinstance(state.ending, RunCompleted)
    assert state.decisions[0].decision.action == "edit_harness"
    assert {r.failure for r in events(undisturbed, RolloutRecorded)} <= {None, "wrong"}


def test_a_trainer_that_runs_beside_it_has_nothing_to_compare(undisturbed):
    """The model's weights are elsewhere: their log-probabilities cannot be computed again."""
    assert "trainer" in {path.stem.rpartition("-")[0] for path in undisturbed.workers.rglob("trainer-*")}
    assert events(undisturbed, DriftRequested) == []


def test_every_shard_names_who_answered(undisturbed, server):
    manifests = {shard.manifest for shard in events(undisturbed, ShardSampled)}
    (manifest,) = manifests
    (request,) = events(undisturbed, RunRequested)
    assert (manifest.model, manifest.endpoint, manifest.fingerprint) == ("far-model", server.url, server.fingerprint)
    assert manifest.model_digest == request.model_digest
    assert request.settings.endpoint.profile == "resia"


def test_its_tokens_are_counted_and_worth_money(undisturbed):
    state = log_of(undisturbed).at()
    rollouts = events(undisturbed, RolloutRecorded)
    spent = [sum(r.prompt_tokens for r in rollouts), sum(r.completion_tokens for r in rollouts)]
    assert [state.ledger.prompt_tokens, state.ledger.completion_tokens] == spent
    assert summary(state).money == pytest.approx((10 * spent[0] + 20 * spent[1]) / 1e6)


def test_the_key_is_nowhere_in_the_store(undisturbed):
    files = [path for path in undisturbed.folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


async def test_killed_interrupted_and_resumed_it_has_the_same_ledger(undisturbed, server, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    saboteur, reached = Saboteur("task-1", lambda data: data["kind"] == "tokens"), asyncio.Event()

    def on_fact(state, fact) -> None:
        if isinstance(fact, Fact) and isinstance(fact.event, DecisionMade):
            reached.set()

    session = Session(RUN, load_settings(None, settings(server)), Store(tmp_path), WORKERS)
    under_way = asyncio.create_task(launch(session, saboteur.watch()._replace(fact=on_fact)))
    await asyncio.wait_for(reached.wait(), 120)
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    assert saboteur.struck
    assert [died.code for died in saboteur.deaths] == [-9]
    state = await launch(Session(RUN, None, Store(tmp_path), WORKERS), Watch())
    whole = (await load(undisturbed, RUN)).at()
    assert state.ledger == whole.ledger
    assert digest(state) == digest(whole)


def test_performing_it_again_is_no_divergence_and_says_why(undisturbed, server):
    log = log_of(undisturbed)
    works = performances(log, "sampling")
    found = recompute(log, undisturbed.blobs(), works)
    assert (found.performed, found.problems) == ({}, ())
    assert len(found.not_comparable) == len(works) > 0
    why = f"model far-model at {server.url} sampled it, an outside party"
    assert all(one.why.startswith(why) for one in found.not_comparable)


def test_replay_of_state_and_decisions_holds(undisturbed):
    assert main(["replay", RUN, "--store", str(undisturbed.folder), "--verify"]) == DONE


def test_a_fork_cannot_ask_another_endpoint_or_train(undisturbed, monkeypatch, capsys):
    monkeypatch.setenv(KEY_ENV, KEY)
    fork = ["--store", str(undisturbed.folder), "--set"]
    assert main(["fork", f"{RUN}@1", *fork, "endpoint.base_url=http://127.0.0.1:9/v1"]) == USAGE
    assert "engine.kind, engine.model or endpoint.base_url cannot change in a fork" in capsys.readouterr().err
    assert main(["fork", f"{RUN}@1", *fork, "loop.mode=W+H"]) == USAGE
    assert "mode W+H trains weights" in capsys.readouterr().err


async def test_a_key_that_is_refused_stops_the_run_which_goes_on_with_another(server, tmp_path, monkeypatch):
    """Nothing is settled by it: no rollout is lost and no patience spent."""
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 1)
    words = rf"^task-1 keeps failing: model far-model at .*HTTP 401: the key is not taken.*resia run --resume {RUN}$"
    with endpoint(failing(401, "expired")) as there:
        given = load_settings(None, [*settings(server, "loop.max_iterations=1"), f"endpoint.base_url={there.url}"])
        with pytest.raises(BusError, match=words):
            await launch(Session(RUN, given, Store(tmp_path), WORKERS), Watch())
        log = await load(Store(tmp_path), RUN)
        assert not [f for f in log.facts if isinstance(f, Fact) and isinstance(f.event, RolloutFailed | ShardSampled)]
        there.replies[:] = [saying(says("", 1))]
        state = await launch(Session(RUN, None, Store(tmp_path), WORKERS), Watch())
    assert isinstance(state.ending, RunCompleted)
    assert state.ledger.failed_rollouts == 0


def test_a_run_without_its_key_does_not_begin(server, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(KEY_ENV, raising=False)
    assert main(command(server, tmp_path)) == USAGE
    wanted = f"resia: the environment variable {KEY_ENV}, which endpoint.key_env names, is not set: set it to the key\n"
    assert capsys.readouterr().err == wanted
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_trained_through_an_endpoint(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(KEY_ENV, KEY)
    assert main(command(server, tmp_path, "loop.mode=W+H")) == USAGE
    assert (
        "mode W+H trains weights, and the endpoint of engine.kind openai has none to train" in capsys.readouterr().err
    )

"""Forks end to end: real processes, a real server, a tiny taught model, and the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from given import SETTINGS
from resia.events import AdapterTrained, DecisionMade, Fact, RolloutRecorded
from resia.events.errors import UsageError
from resia.replay.digest import view
from resia.replay.state import RunState
from resia.runtime.cli import main
from resia.runtime.config import load_settings
from resia.runtime.forking import prepare, prepare_all
from resia.runtime.reading import load
from resia.runtime.replaying import verify_log
from resia.runtime.session import Session, Watch, launch
from resia.runtime.store import Store, opened
from resia.trainers.objectives import FEASIBLE

RUN, AGAIN = "parent", "parent-at-1"
OF_THE_TEST = {"evaluations", "unsealed", "controls", "controls_asked", "ending", "ledger"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a run that trained once and stopped, and with its fork at 1, interrupted and continued."""
    import tiny_agent

    model = tiny_agent.unpack(tmp_path_factory.mktemp("taught"))
    there = Store(tmp_path_factory.mktemp("forks") / "store")
    settings = load_settings(None, [*SETTINGS, f"engine.model={model}"])
    asyncio.run(launch(Session(RUN, settings, there), Watch()))
    asyncio.run(_interrupted_fork(there))
    return there


async def _interrupted_fork(store: Store) -> None:
    child = await prepare(store, f"{RUN}@1", [], None, None)
    begun = asyncio.Event()

    def on_fact(state: RunState, fact: Fact) -> None:
        if isinstance(fact, Fact) and isinstance(fact.event, DecisionMade):
            begun.set()

    task = asyncio.create_task(launch(Session(child.run, None, store, request=child.request), Watch(fact=on_fact)))
    await asyncio.wait_for(begun.wait(), 120)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await launch(Session(child.run, None, store), Watch())


@pytest.fixture
def say(capsys, monkeypatch, tmp_path, store):
    """Run a command over the store in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        code = main([*map(str, args), "--store", str(store.folder)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


async def stored(store: Store) -> list[tuple[str, int]]:
    """Every run with the number of its last event."""
    async with opened(store) as bus:
        return [(entry.run, await bus.last_sequence(entry.run)) for entry in await bus.runs()]


async def test_a_fork_without_changes_ends_as_its_parent(store):
    parent, child = (await load(store, RUN)).at(), (await load(store, AGAIN)).at()
    one, other = view(parent), view(child)
    assert {name for name in one if one[name] != other[name]} <= OF_THE_TEST
    adapters = [[f.event.adapter.digest for f in await trained(store, run)] for run in (RUN, AGAIN)]
    assert adapters[0] == adapters[1] != []


async def trained(store: Store, run: str) -> list[Fact]:
    facts = (await load(store, run)).facts
    return [fact for fact in facts if isinstance(fact, Fact) and isinstance(fact.event, AdapterTrained)]


async def test_it_samples_no_test_item_and_none_of_its_parents_rollouts_again(store):
    rollouts = [
        f.event
        for f in (await load(store, AGAIN)).facts
        if isinstance(f, Fact) and f.envelope.type == "rollout-recorded"
    ]
    assert rollouts != []
    assert all(isinstance(r, RolloutRecorded) and r.split != "test" for r in rollouts)
    inherited = (await load(store, AGAIN)).origin
    assert not {r.evaluation for r in rollouts} & set(inherited.evaluations)


async def test_every_check_holds_over_a_fork(store):
    assert verify_log(await load(store, AGAIN), store).problems == ()


def test_every_reading_command_works_on_a_fork(say):
    code, out, err = say("status", AGAIN)
    assert (code, err) == (0, "")
    assert f"{AGAIN} (fork of {RUN}@1): completed" in out
    assert say("replay", AGAIN, "--verify")[0] == 0
    assert say("diff", AGAIN, 0, 1)[0] == 0
    code, out, _ = say("explain", f"{AGAIN}@1")
    assert (code, out.splitlines()[0]) == (0, "Iteration 1 decided to train the weights (event 3).")
    assert "the sealed test closed" in say("explain", f"{AGAIN}@2")[1]


def test_all_algorithms_where_none_can_be_trained(say):
    """At the stop the patience is spent: six results, no error, and asked for again nothing runs."""
    code, out, err = say("fork", f"{RUN}@2", "--all-algorithms", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["run"] for line in lines] == [f"{RUN}-at-2-{algorithm}" for algorithm in FEASIBLE]
    assert {line["since"] for line in lines} == {f"{RUN}@2"}
    assert all(line["decisions"][0]["action"] == "stop" and line["note"] for line in lines)
    code, again, err = say("fork", f"{RUN}@2", "--all-algorithms", "--json")
    assert (code, again) == (0, out)
    assert err.count("is there already") == len(FEASIBLE)
    code, out, _ = say("compare", RUN, *(line["run"] for line in lines))
    assert code == 0
    assert all(line["run"] in out for line in lines)
    explained = say("explain", f"{RUN}-at-2-grpo@1")
    assert explained[0] == 0
    assert f"(before the fork from {RUN}@2)" in explained[1]
    code, out, err = say("fork", f"{RUN}-at-2-grpo@1")
    assert (code, out) == (2, "")
    assert err == f"resia: run '{RUN}-at-2-grpo' has iteration 1 from run '{RUN}': write {RUN}@1\n"


def test_a_fork_from_the_command_line_says_what_came_of_it(say):
    code, out, err = say("fork", f"{RUN}@2", "--set", "mode=H", "--json")
    assert code == 0
    (line,) = [json.loads(text) for text in out.splitlines()]
    assert (line["run"], line["parent"], line["status"]) == (f"{RUN}-at-2-h", f"{RUN}@2", "completed")
    assert "decided" in err
    code, out, _ = say("fork", f"{RUN}@2", "--set", "loop.max_iterations=1", "--run", "spent", "--json")
    assert (code, json.loads(out)["run"]) == (3, "spent")


async def test_the_children_of_all_algorithms_take_one_decision_in_mode_w(store):
    children = await prepare_all(store, f"{RUN}@1", ["training.rank=4"], None, "six")
    assert [child.run for child in children] == [f"six-{algorithm}" for algorithm in FEASIBLE]
    for child, algorithm in zip(children, FEASIBLE, strict=True):
        settings = child.request.settings
        assert (settings.algorithm, settings.loop.mode, settings.loop.max_iterations) == (algorithm, "W", 1)
        assert settings.training.rank == 4
        assert child.request.settings_digest == settings.digest()
        assert not child.there
    (first, *_) = await prepare_all(store, f"{RUN}@1", ["loop.max_iterations=5", "mode=W+H"], None, None)
    assert first.run == f"{RUN}-at-1-max_iterations-5-wh-{FEASIBLE[0]}"
    assert (first.request.settings.loop.max_iterations, first.request.settings.loop.mode) == (5, "W+H")


async def test_names_say_what_changed_and_are_new(store):
    async def named(*sets: str) -> str:
        return (await prepare(store, f"{RUN}@1", sets, None, None)).run

    assert await named() == f"{AGAIN}-2"  # parent-at-1 is there
    assert await named("algorithm=dpo") == f"{RUN}-at-1-dpo"
    assert await named("mode=W+H", "loop.patience_h=1") == f"{RUN}-at-1-wh-patience_h-1"
    assert await named('algorithm="grpo"') == f"{RUN}-at-1-grpo"
    assert len(await named(*(f"training.gamma=0.{n:030}" for n in range(1, 4)))) <= 64


async def test_a_fork_that_sets_mode_h_drops_the_algorithm_that_its_parent_asked_for(store):
    (child, *_) = await prepare_all(store, f"{RUN}@1", [], None, None)
    assert child.request.settings.algorithm is not None
    async with opened(store) as bus:
        before = {entry.run for entry in await bus.runs()}
    forked = await prepare(store, f"{RUN}-at-2-grpo@2", ["mode=H"], None, None)
    assert forked.request.settings.algorithm is None
    assert forked.run not in before


@pytest.mark.parametrize(
    ("ref", "sets", "words"),
    [
        ("nope@1", [], "unknown run 'nope'"),
        (f"{RUN}@9", [], f"in run '{RUN}' there is no iteration 9: take one from 1 to 2"),
        (RUN, [], f"fork needs an iteration: write RUN@K with K from 1, such as '{RUN}@1'"),
        (f"{RUN}@0", [], "names no iteration"),
        (f"{RUN}@1", ["mode"], "--set takes name=value such as mode=H, not 'mode'"),
        (f"{RUN}@1", ["mode=X"], "unknown value of loop.mode 'X'"),
        (f"{RUN}@1", ["lop.mode=H"], "unknown setting in --set lop.mode=H: 'lop': did you mean loop?"),
        (f"{RUN}@1", ["algorithm=grop"], "unknown value of algorithm 'grop': did you mean grpo"),
        (f"{RUN}@1", ["mode=H", "algorithm=grpo"], "mode H freezes the weights: leave algorithm out"),
        (f"{RUN}@1", ["mode=H", "training.rounds=2"], "mode H freezes the weights: leave training.rounds out"),
        (f"{RUN}@1", ["loop.patience_h=2"], "mode W freezes the harness: leave loop.patience_h out"),
        (f"{RUN}@1", ["engine.dtype=bfloat16"], "engine.dtype cannot change in a fork"),
        (f"{RUN}@1", ["mode=random"], "mode random searches from generation 0: begin a run of its own"),
        (f"{RUN}@1", ["domain=other"], "domain cannot change in a fork"),
        (f"{RUN}@1", ["domain_options.search_items=4"], "domain_options cannot change in a fork"),
        (f"{RUN}@1", ["engine.model=nope"], "unknown asset 'nope'"),
        (f"{RUN}@1", ["sampling.shard_size=0"], "setting sampling.shard_size is 0"),
    ],
)
async def test_what_cannot_be_forked_is_one_sentence(store, ref, sets, words):
    with pytest.raises(UsageError) as refused:
        await prepare(store, ref, sets, None, None)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "algorithm=dpo", "--all-algorithms"], "leave algorithm=dpo out"),
        (["--set", "mode=H", "--all-algorithms"], "mode H freezes the weights: --all-algorithms needs mode W or W+H"),
        (["--run", RUN], f"run '{RUN}' exists already"),
        (["--run", "a/b"], "run name 'a/b' cannot be used"),
        (["--workers", "tsk=2"], "unknown role 'tsk': did you mean task"),
    ],
)
def test_what_is_refused_leaves_every_log_as_it_was(say, store, args, words):
    before = asyncio.run(stored(store))
    code, out, err = say("fork", f"{RUN}@1", *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert asyncio.run(stored(store)) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "nope"], "unknown run 'nope'"),
        (["compare", f"{RUN}@1"], "cannot be used"),
        (["compare"], "compare needs the name of at least one run, or --arms to make some"),
        (["compare", RUN, "--arms", "H,W"], f"--arms makes runs of its own: leave run '{RUN}' out"),
        (["compare", RUN, "--workers", "task=2"], "--workers goes with --arms, which makes runs"),
        (["compare", "--arms", "H,W", "--set", "loop.mode=H"], "--arms says which modes are run"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(say, args, words):
    code, out, err = say(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


async def test_a_fork_needs_its_parents_files(store, tmp_path):
    from resia.runtime.store import serving

    async with serving(store) as log:
        user, password = log.access.login("admin")
        url = log.access.url.replace("nats://", f"nats://{user}:{password}@")
        with pytest.raises(UsageError, match=f"the files of run '{RUN}' are not in .*: name its store with --store"):
            await prepare(Store(Path(tmp_path / "elsewhere"), url), f"{RUN}@1", [], None, None)


def test_a_fork_of_another_model_is_refused(say, tmp_path):
    from resia.runtime.engines.tiny import build_tiny_model

    other = build_tiny_model(tmp_path / "other", seed=1)
    code, _, err = say("fork", f"{RUN}@1", "--set", f"engine.model={other}")
    assert (code, "engine.model cannot change in a fork" in err) == (2, True)

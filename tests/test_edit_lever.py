"""The harness lever in whole runs of real processes: several edits tried, remembered, fitted from and used again."""

from __future__ import annotations

import asyncio
import json

import pytest

from resia.events import DecisionMade, EditRequested, Fact, HarnessEdited, RolloutRecorded
from resia.replay.memory import tried_edits
from resia.runtime.cli import main
from resia.runtime.config import load_settings
from resia.runtime.policies import read_policy
from resia.runtime.reading import load
from resia.runtime.replaying import verify_log
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch
from resia.runtime.store import Store

RUN = "edits"
SETTINGS = [
    "domain_options.synthetic=true",
    "domain_options.search_items=2",
    "domain_options.validation_items=12",
    "domain_options.test_items=2",
    "engine.threads=1",
    "loop.mode=H",
    "loop.patience_h=3",
    "loop.max_iterations=3",
    "sampling.group_size=2",
    "sampling.shard_size=12",
    "seed=3",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import tiny_agent

    return tiny_agent.unpack(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("edits") / "store"
    settings = load_settings(None, [*SETTINGS, f"engine.model={model}"])
    return asyncio.run(launch(Session(RUN, settings, Store(folder), DEFAULT_WORKERS), Watch())), folder


@pytest.fixture
def say(capsys):
    def run(*args):
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def test_every_iteration_tries_another_edit(finished):
    state, _ = finished
    edits = tried_edits(state)
    assert [edit.iteration for edit in edits] == [1, 2, 3]
    assert len({(edit.parent, edit.operator) for edit in edits}) == 3
    assert len({edit.harness for edit in edits}) == 3
    assert all(edit.effect is not None and edit.ci_low <= edit.ci_high for edit in edits)


async def test_every_check_of_the_log_holds(finished):
    _, folder = finished
    store = Store(folder)
    log = await load(store, RUN)
    assert verify_log(log, store).problems == ()
    facts = [fact.event for fact in log.facts if isinstance(fact, Fact)]
    assert sum(isinstance(event, HarnessEdited) for event in facts) == 3
    assert any(isinstance(event, RolloutRecorded) for event in facts)


def test_status_shows_what_was_tried(finished, say):
    state, folder = finished
    code, out, err = say("status", RUN, "--store", folder)
    assert (code, err) == (0, "")
    for edit in tried_edits(state):
        assert edit.operator in out
    assert "failures moved" in out
    listed = json.loads(say("status", RUN, "--store", folder, "--json")[1])["edits"]
    assert [(e["iteration"], e["operator"], e["harness"]) for e in listed] == [
        (e.iteration, e.operator, e.harness) for e in tried_edits(state)
    ]
    assert set(listed[0]) == {
        *("iteration", "operator", "component", "parent", "harness", "outcome", "effect", "ci_low", "ci_high"),
        *("moved", "rationale", "why"),
    }


def test_what_a_run_tried_ranks_the_edits_of_the_next(finished, model, tmp_path, say):
    state, folder = finished
    path = tmp_path / "policy.json"
    code, out, _ = say("policy", "fit", RUN, "--out", path, "--store", folder)
    assert code == 0
    assert "0 updates and 3 edits of 1 run" in out
    policy = read_policy(path)
    assert sum(arm.tries for by_name in policy.operators.values() for arm in by_name.values()) == 3
    assert all(f"{edit.operator}: 1 edit, " in out for edit in tried_edits(state))
    sets = [x for text in [*SETTINGS, f"engine.model={model}", "loop.max_iterations=1"] for x in ("--set", text)]
    args = ("run", "--run", "next", "--policy", path, "--store", folder, *sets)
    code, _, err = say(*args)
    assert code == 3, err  # its one iteration is spent
    log = asyncio.run(load(Store(folder), "next"))
    facts = [fact.event for fact in log.facts if isinstance(fact, Fact)]
    (asked,) = [event for event in facts if isinstance(event, EditRequested)]
    assert set(asked.scores) == set(asked.operators)
    assert log.at().request.policy == policy
    decision = next(event for event in facts if isinstance(event, DecisionMade))
    assert "learned-operators/1:rank" in decision.rule
    assert verify_log(log, Store(folder)).problems == ()
    code, text, _ = say("explain", "next@1", "--store", folder)
    assert f"operators ranked by policy {policy.digest()[:12]}" in text.replace("\n", " ")

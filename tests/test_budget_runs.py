"""Budgets end to end: real processes, a real server, a tiny taught model, and the command line.

The tests share a store and stand in the order in which its runs are made: what is estimated depends on those before.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from given import SETTINGS
from resia.events import BudgetSpent, DecisionMade, Fact
from resia.runtime.cli import main
from resia.runtime.cli_options import BUDGET, DONE, USAGE
from resia.runtime.reading import load
from resia.runtime.stopwatch import Stopwatch, forget_seconds
from resia.runtime.store import Store, opened

ROLLOUTS = 3 * 4 + 3 + 12  # of one evaluation
SMALL = [*SETTINGS, "loop.mode=H", "loop.patience_h=1", "loop.max_iterations=1", "sampling.group_size=4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_agent

    return tiny_agent.unpack(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budgets") / "store"


@pytest.fixture
def say(capsys, monkeypatch, tmp_path, model, store):
    """Run a command over the store: (exit code, standard output, standard error). `sets` are settings."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, sets: list[str] | None = None) -> tuple[int, str, str]:
        chosen = [] if sets is None else [*SMALL, f"engine.model={model}", *sets]
        if "--arms" in args:
            chosen = [text for text in chosen if not text.startswith("loop.mode=")]  # which the arms say
        given = [word for text in chosen for word in ("--set", text)]
        code = main([*args, *given, "--store", str(store)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def facts(store: Path, run: str) -> list[Fact]:
    return [fact for fact in asyncio.run(load(Store(store), run)).facts if isinstance(fact, Fact)]


def stop(store: Path, run: str) -> DecisionMade:
    return [f.event for f in facts(store, run) if isinstance(f.event, DecisionMade)][-1]


def test_a_dry_run_begins_nothing(say, store):
    code, out, err = say("run", "--dry-run", "--json", sets=[])
    assert (code, err) == (DONE, "")
    found = json.loads(out)
    assert found["parts"][0]["rollouts"] == ROLLOUTS
    assert found["run"]["seconds"] is None
    assert not store.exists()


def test_a_dry_run_makes_a_runs_own_checks(say, store):
    assert say("run", "--dry-run", sets=["gate.min_items=99"])[0] == USAGE
    assert say("estimate", sets=["gate.min_items=99"])[0] == DONE  # which only counts
    assert not store.exists()


PRICED = 'price.models={{"{}"={{prompt=10.0,completion=10.0}}}}'


@pytest.mark.parametrize(
    ("run", "budget", "reason"),
    [
        ("tokens", "loop.token_budget=1000", "no tokens are left"),
        ("seconds", "loop.seconds_budget=0.5", "no time is left of 0.5 seconds"),
        ("money", "loop.money_budget=0.001", "no money is left: "),
    ],
)
def test_each_budget_ends_a_run_with_code_3_and_its_decisions_replay(say, store, model, run, budget, reason):
    code, out, _ = say("run", "--run", run, "--json", sets=[budget, PRICED.format(model)])
    line = json.loads(out)
    assert (code, line["status"], line["events"]) == (BUDGET, "completed", len(facts(store, run)))
    assert line["reason"].startswith(reason)
    assert stop(store, run).rule == "select-lever/1:0-budget"
    assert sum(cycle["tokens"] for cycle in line["cycles"]) == line["tokens"]
    assert line["money"] == pytest.approx(line["tokens"] * 10 / 1e6)
    assert say("replay", run, "--verify")[0] == DONE
    spent = [f for f in facts(store, run) if isinstance(f.event, BudgetSpent)]
    said = [(f.event.kind, f.event.limit, f.envelope.producer.role) for f in spent if f.event.spent >= 0.5]
    assert said == ([("seconds", 0.5, "user")] if run == "seconds" else [])


def test_seconds_are_counted_on_by_the_next_session(tmp_path):
    first = Stopwatch(tmp_path / "run")
    first.keep()
    counted = float((tmp_path / "run").read_text())
    (tmp_path / "run").write_text(f"{counted + 100}\n")
    assert Stopwatch(tmp_path / "run").seconds >= 100
    (tmp_path / "run").write_text("half a num")
    assert Stopwatch(tmp_path / "run").seconds < 100


def test_a_new_run_counts_none_of_a_removed_ones_seconds(tmp_path):
    there = Store(tmp_path)
    Stopwatch(there.seconds / "run").keep()
    forget_seconds(there, "run")
    assert list(there.seconds.iterdir()) == []
    forget_seconds(there, "run")


def test_an_estimate_beside_the_run_that_follows_it(say, store):
    settings = ["seed=5"]
    before = json.loads(say("estimate", "--json", sets=settings)[1])
    code, out, _ = say("run", "--run", "whole", "--json", sets=settings)
    spent = json.loads(out)
    assert code == BUDGET  # of its one iteration
    measured, _probed, tested = before["parts"]
    evaluations = [c for c in spent["cycles"] if c["action"] in ("draft", "edit_harness") and c["rollouts"]]
    assert {c["rollouts"] for c in evaluations} == {measured["rollouts"]} == {ROLLOUTS}
    assert all(c["tokens"] <= measured["tokens_most"] for c in evaluations)
    assert spent["cycles"][-1]["rollouts"] <= tested["rollouts"]
    assert spent["tokens"] <= before["run"]["tokens_most"]
    assert spent["rollouts"] <= before["run"]["rollouts_most"]
    assert before["run"]["seconds"] > 0  # runs of this model were measured before
    # Generation 0's prompts are measured now, and nothing but its completions can differ.
    assert measured["tokens"] == pytest.approx(evaluations[0]["tokens"], rel=0.2)


def test_status_shows_what_each_cycle_cost(say):
    code, out, _ = say("status", "money")
    assert code == DONE
    rows = [line.split() for line in out.splitlines()]
    assert ["it", "cycle", "rollouts", "prompt", "completion", "training", "tokens", "USD"] in rows
    assert [row[1] for row in rows if row and row[0] in ("0", "1") and row[1] in ("draft", "sealed")] == [
        "draft",
        "sealed",
    ]
    assert [row for row in rows if row[:2] == ["in", "all"]]


ARMS = ["compare", "--arms", "H,random,best-of-n", "--seeds", "2", "--run", "cmp", "--json"]
EQUAL = ["loop.token_budget=80000"]


@pytest.mark.timeout(900)
def test_arms_are_run_once_compared_and_replayed(say, store):
    code, out, err = say(*ARMS, sets=EQUAL)
    lines = {line["arm"]: line for line in map(json.loads, out.splitlines())}
    assert (code, list(lines)) == (DONE, ["H", "random", "best-of-n"])
    assert "6 of 6: cmp-best-of-n-4" in err
    for line in lines.values():
        assert (len(line["runs"]), line["failed"], line["coverage"], line["token_budget"]) == (2, 0, 1.0, 80_000)
    assert lines["H"]["test_effect"] is None
    effect = lines["random"]["validation_effect"]
    assert (effect["seeds"], effect["items"]) == (2, 12)
    assert effect["mean"] == pytest.approx(lines["random"]["validation"] - lines["H"]["validation"])
    # Generation 0's and the judging cost the same, as only the reading of the text differs between the two.
    assert lines["best-of-n"]["tokens"] == pytest.approx(80_000, rel=0.06)
    assert lines["best-of-n"]["tokens"] <= 80_000 * 1.06
    assert all("The best of " in note for note in lines["random"]["notes"])
    for run in (run for line in lines.values() for run in line["runs"]):
        assert say("replay", run, "--verify")[0] == DONE

    events = counted(store)
    again = say(*ARMS, sets=EQUAL)
    assert (again[0], again[1]) == (DONE, out)
    assert again[2].count("is there already") == 6
    assert counted(store) == events
    table = say(*ARMS[:-1], sets=EQUAL)[1]
    assert "each run with a budget of 80,000 tokens" in table
    assert [line for line in table.splitlines() if line.startswith("best-of-n ")]


def counted(store: Path) -> list[tuple[str, int]]:
    async def count() -> list[tuple[str, int]]:
        async with opened(Store(store)) as bus:
            return [(entry.run, await bus.last_sequence(entry.run)) for entry in await bus.runs()]

    return asyncio.run(count())


def test_a_name_with_other_settings_is_refused(say):
    code, out, err = say(*ARMS, sets=["loop.token_budget=80001"])
    assert (code, out) == (USAGE, "")
    assert "run 'cmp-h-3' is there with other settings, data or model: name this comparison with --run" in err


def test_runs_of_a_comparison_can_be_compared_as_any_others(say):
    code, out, _ = say("compare", "cmp-h-3", "cmp-random-3", "--json")
    assert code == DONE
    assert [json.loads(line)["run"] for line in out.splitlines()] == ["cmp-h-3", "cmp-random-3"]

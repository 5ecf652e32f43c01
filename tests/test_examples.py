"""The examples run: against a real server, against the published schema, and as an installed package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import nats
import own_workers
import pytest

import histories
from given import BLOB, CANDIDATE, clerk
from resia.agents.operators import applicable
from resia.agents.proposing import first_harness
from resia.domains.admission import examine
from resia.domains.registry import domain_names, load_domain
from resia.domains.trials import Plan
from resia.events import Custom, Draft, EvaluationCompleted, EvaluationRequested, Fact, RolloutRecorded, Skipped
from resia.events.errors import UsageError
from resia.events.ids import event_id
from resia.events.subjects import stream
from resia.runtime.store import Store
from resia.runtime.tailing import tail_lines

EXAMPLES = Path(__file__).parent.parent / "examples"
PLUG_IN = EXAMPLES / "own_domain"
VERDICTS = {"candidate-accepted", "candidate-rejected", "candidate-undecided"}


def example(name: str, *args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *args]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


@pytest.fixture
def store(access, tmp_path):
    """The fixtures' server as a person names one: an address with a login."""
    login = f"admin:{access.passwords['admin']}@"
    return Store(tmp_path, access.url.replace("nats://", f"nats://{login}"))


@pytest.fixture
async def facts(bus, run) -> tuple[Fact, ...]:
    """A whole run on the server."""
    played = histories.play(histories.run_request(patience_h=2, max_iterations=4), run=run)
    for (subject, data), fact in zip(played.records, played.facts, strict=True):
        await bus.append(run, [Draft(fact.envelope.id, subject, data, fact.event)])
    return played.facts


def test_tail_scores_prints_every_verdict_and_ends_with_the_run(store, run, facts):
    done = example("tail_scores.py", run, "--nats", store.nats)
    assert done.stderr == ""
    verdicts = [fact for fact in facts if fact.envelope.type in VERDICTS]
    assert len(verdicts) > 2
    expected = [f"{f.sequence:6}  {f.envelope.type}: {f.event.gate.reason}" for f in verdicts]
    assert done.stdout.splitlines() == expected


async def tailed(store: Store, run: str) -> list[str]:
    return [msgspec.json.encode(line).decode() async for line, _ in tail_lines(store, run, False, frozenset())]


async def test_schema_check_passes_a_whole_run(store, run, facts):
    done = example("schema_check.py", given="\n".join(await tailed(store, run)))
    assert done.stdout == f"{len(facts)} events, 0 do not fit\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        ('"basis":0', '"basis":"0"', 'event.basis is "0"; type: integer'),
        ('"basis":0', '"basis":true', "event.basis is true; type: integer"),
        ('"run":', '"ran":', "event has no run"),
        ('"objective":"mean"', '"objective":"mode"', "event.payload.objective is \"mode\"; enum: ['max', 'mean']"),
        ('"alpha":0.05', '"alpha":1.5', "event.payload.settings.gate.alpha is 1.5; exclusiveMaximum: 1.0"),
        ('"max_iterations":4', '"max_iterations":0', "event.payload.settings.loop.max_iterations is 0; minimum: 1"),
        ('"canaries":8', '"canaries":8,"x":1', "event.payload.settings.gate.x is not a field"),
        ('"parent":null', '"parent":7', "event.payload.parent fits none of 2 choices"),
        ('["s00"', "[3", "event.payload.items.search[0] is 3; type: string"),
        ('"version":2', '"version":3', "event.version is 3; const: 2"),
        ('"type":"run-requested"', '"type":"run-wished"', 'type is "run-wished", which is no event'),
    ],
)
async def test_schema_check_names_what_does_not_fit(store, run, facts, right, wrong, why):
    first, second, *_ = await tailed(store, run)
    assert right in first
    done = example("schema_check.py", given="\n".join([second, first.replace(right, wrong, 1)]))
    assert done.stdout == f"line 2: {why}\n2 events, 1 do not fit\n"
    assert done.returncode == 1


def test_schema_check_refuses_a_schema_that_it_cannot_check(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"oneOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"pattern": "a"}}}')
    done = example("schema_check.py", "--schema", str(schema), given='{"type": "x"}')
    assert done.returncode == 1
    assert "the schema says 'pattern', which this example does not check" in done.stderr


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """The example as an installed package: its folder, and the metadata that its own pyproject.toml leads to."""
    project = tomllib.loads((PLUG_IN / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["resia.domains"]
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[resia.domains]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(PLUG_IN))
    yield
    sys.modules.pop("hidden_number", None)


def test_the_own_domain_is_found_by_its_entry_point(plug_in):
    assert "hidden-number" in domain_names()
    domain = load_domain("hidden-number", {"items": 13})
    assert domain.spec.name == "hidden-number"
    assert [len(domain.items(split)) for split in ("search", "validation", "test")] == [13, 13, 13]


def test_the_own_domain_scores_by_the_hidden_target(plug_in):
    domain = load_domain("hidden-number", {"shift": 7})
    for item in domain.items("validation"):
        shown = int(item.prompt.removeprefix("shown="))
        assert domain.score(item.id, {"number": shown + 7}).reward == 1.0
        assert domain.score(item.id, {"number": shown}).reward == pytest.approx(1 - 7 / 50)
    assert load_domain("hidden-number", {"shift": 6}).digest != domain.digest


def test_the_own_domain_is_admitted(plug_in):
    findings = examine(load_domain("hidden-number", {}), Plan()).findings
    assert [finding.detail for finding in findings if finding.passed is not True] == []


def test_the_own_domain_checks_arguments_and_options(plug_in):
    domain = load_domain("hidden-number", {})
    assert domain.parse({}) == {"number": 50}
    assert domain.render(domain.parse({"number": 7})) == "number=7"
    for request in ({"number": 100}, {"number": True}, {"number": "7"}, {"count": 7}):
        with pytest.raises(ValueError, match="give number, one of 0 to 99"):
            domain.parse(request)
    with pytest.raises(UsageError, match="option items of the hidden-number domain is 0"):
        load_domain("hidden-number", {"items": 0})


def test_the_own_domain_has_controls_on_every_split(plug_in):
    domain = load_domain("hidden-number", {})
    few, many = domain.controls(12, 1), domain.controls(12 * 100, 1)
    assert [(c.name, c.split) for c in few] == [(c.name, c.split) for c in many]
    assert {c.split for c in few} == {"search", "validation", "test"}
    best = {c.split: c.mean for c in many if c.name == "random-search"}["search"]
    assert best >= max(c.mean for c in few if c.split == "search")


def test_the_own_domain_can_be_drafted_and_edited(plug_in):
    domain = load_domain("hidden-number", {})
    harness = first_harness(domain.spec)
    assert "number=50" in harness.system_prompt.text
    assert "demonstrate-best" in applicable(harness, domain)


# -- workers of a user's own -----------------------------------------------------------------------------------------


def offline(said: str) -> bool:
    """Whether a package manager failed because it reached nobody."""
    signs = ("NewConnectionError", "ConnectTimeout", "Temporary failure", "Name or service", "ENOTFOUND", "ETIMEDOUT")
    return any(sign in said for sign in (*signs, "ECONNREFUSED", "EAI_AGAIN", "No matching distribution found"))


def installed(command: list[str], where: Path, what: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=280)
    said = done.stdout + done.stderr
    if done.returncode and offline(said):
        pytest.skip(f"{what} cannot be installed without a network: {said.strip().splitlines()[-1]}")
    assert done.returncode == 0, said


def test_the_regression_alert_is_short():
    assert len((EXAMPLES / "regression_alert.py").read_text().splitlines()) < 30


async def test_the_regression_alert_names_every_worse_candidate(home):
    facts, state = await own_workers.lay(home.bus)
    best = state.evaluations[state.champion.evaluation].completed.scores["validation"].mean
    worse = [
        (fact.envelope.id, best, fact.event.scores["validation"].mean)
        for fact in facts
        if fact.envelope.type == "evaluation-completed"
        and "validation" in fact.event.scores
        and fact.event.scores["validation"].mean < best - 0.05
    ]
    assert worse
    file = EXAMPLES / "regression_alert.py"
    process = own_workers.started(
        own_workers.resia("worker", "start", file, "--run", own_workers.RUN, "--store", home.folder)
    )
    alerts = await own_workers.customs(home.bus, len(worse))
    await own_workers.end(home.bus)
    assert (await own_workers.finished(process))[::2] == (0, "")
    assert [tuple(a.payload[k] for k in ("evaluation", "champion", "candidate")) for a in alerts] == worse
    assert {a.envelope.producer.package for a in alerts} == {"regression_alert.py"}


def rewarded(run: str, cause: Fact, evaluation: str, reward: float, count: int) -> list[Draft]:
    rollouts = [
        RolloutRecorded(
            evaluation, "candidate", 0, "search", f"s{n}", 0, n, False, reward, False, None, "", {}, "", (), 1, 1, BLOB
        )
        for n in range(count)
    ]
    return clerk(run, "task").drafts(cause, 1, rollouts, f"rollouts of {evaluation}")


async def measured(home, run: str, rewards: list[float]) -> list[str]:
    """A run with one evaluation of 150 equal rewards for each of `rewards`; the ids of their requests."""
    await home.bus.create_run(run)
    await home.bus.append(run, [clerk(run).genesis(histories.run_request())])
    first = (await own_workers.log_of(home.bus, run))[0]
    ids = []
    for number, reward in enumerate(rewards):
        asked = EvaluationRequested("candidate", number, CANDIDATE, ())
        drafts = clerk(run, "task").drafts(first, 1, [asked], f"ask {number}")
        await home.bus.append(run, drafts)
        await home.bus.append(run, rewarded(run, first, drafts[0].id, reward, 150))
        done = EvaluationCompleted(drafts[0].id, "candidate", number, CANDIDATE, (), 0, {}, {})
        await home.bus.append(run, clerk(run, "task").drafts(first, 1, [done], f"close {number}"))
        ids.append(drafts[0].id)
    return ids


async def test_another_framework_works_in_an_environment_of_its_own(home, tmp_path):
    """The thin package and river, and neither torch nor anything else of this environment."""
    python = tmp_path / "own" / "bin" / "python"
    assert own_workers.ran([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "own")])[0] == 0
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    installed([*pip, "--editable", str(EXAMPLES.parent), str(EXAMPLES / "other_framework")], tmp_path, "river")
    assert "ModuleNotFoundError" in own_workers.ran([str(python), "-c", "import torch"])[2]
    _, listed, _ = own_workers.ran(own_workers.resia("worker", "list", "--json", python=python))
    names = {line["name"]: line for line in map(json.loads, listed.splitlines())}
    assert names["drift-watch"] == {
        "name": "drift-watch",
        "role": "drift",
        "consumes": ["evaluation-completed"],
        "emits": ["drift_reward-shifted"],
        "source": "resia-drift-watch 0.1.0",
        "error": "",
    }
    asked = await measured(home, own_workers.RUN, [0.1, 0.1, 0.9])
    command = own_workers.resia(
        "worker", "start", "drift-watch", "--run", own_workers.RUN, "--store", home.folder, python=python
    )
    process = own_workers.started(command)
    (shifted,) = await own_workers.customs(home.bus, 1)
    await own_workers.end(home.bus)
    assert (await own_workers.finished(process))[::2] == (0, "")
    assert shifted.payload["evaluation"] == asked[2]
    assert shifted.payload["rollouts"] == 450
    assert shifted.payload["mean"] == pytest.approx(0.9, abs=0.05)


@pytest.fixture(scope="module")
def node_worker(tmp_path_factory):
    """The Node.js example with its packages, in a folder of its own."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js here")
    folder = tmp_path_factory.mktemp("node") / "node_worker"
    shutil.copytree(EXAMPLES / "node_worker", folder, ignore=shutil.ignore_patterns("node_modules"))
    installed(["npm", "ci", "--no-audit", "--no-fund"], folder, "the NATS client for Node.js")
    return folder


async def node(folder: Path, home, tmp_path: Path) -> subprocess.Popen[str]:
    """The example with a login that was granted to it."""
    emits = "board_evaluation-summarised"
    granted = own_workers.resia(
        "worker", "grant", "--role", "board", "--emits", emits, "--store", home.folder, "--json"
    )
    (tmp_path / "login.json").write_text(own_workers.ran(granted)[1])
    schema = EXAMPLES.parent / "docs" / "events" / "events.schema.json"
    return own_workers.started(
        ["node", "worker.js", str(tmp_path / "login.json"), own_workers.RUN, str(schema)], cwd=folder
    )


async def test_a_node_worker_needs_only_the_schema_and_the_public_client(node_worker, home, tmp_path):
    facts, _ = await own_workers.lay(home.bus)
    closed = [fact for fact in facts if fact.envelope.type == "evaluation-completed"]
    assert len(closed) > 2
    process = await node(node_worker, home, tmp_path)
    summaries = await own_workers.customs(home.bus, len(closed))
    await own_workers.end(home.bus)
    code, out, err = await own_workers.finished(process)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"event {fact.sequence}: appended" for fact in closed]
    for fact, summary in zip(closed, summaries, strict=True):
        envelope = summary.envelope
        assert envelope.cause == fact.envelope.id
        assert envelope.id == event_id(own_workers.RUN, fact.envelope.id, "board.perform.evaluation-completed", 0)
        assert summary.payload["means"] == {split: score.mean for split, score in fact.event.scores.items()}
    assert not [fact for fact in await own_workers.log_of(home.bus) if isinstance(fact, Skipped)]


async def test_a_node_worker_that_does_it_twice_appends_once(node_worker, home, tmp_path):
    """Its durable is lost, so everything is handed to it again."""
    facts, _ = await own_workers.lay(home.bus)
    closed = [fact for fact in facts if fact.envelope.type == "evaluation-completed"]
    first = await node(node_worker, home, tmp_path)
    before = await own_workers.customs(home.bus, len(closed))
    await own_workers.end(home.bus)
    assert (await own_workers.finished(first))[0] == 0
    admin = await nats.connect(home.access.url, user="admin", password=home.access.passwords["admin"])
    assert await admin.jsm().delete_consumer(stream(own_workers.RUN), "board_program")
    await admin.close()
    again = await node(node_worker, home, tmp_path)
    code, out, err = await own_workers.finished(again)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"event {fact.sequence}: there already" for fact in closed]
    assert [fact for fact in await own_workers.log_of(home.bus) if isinstance(fact, Custom)] == before

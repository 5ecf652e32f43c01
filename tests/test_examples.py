"""The examples run: against a real server, against the published schema, and as an installed package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

import histories
from resia.agents.operators import applicable
from resia.agents.proposing import first_harness
from resia.domains.registry import domain_names, load_domain
from resia.events import Draft, Fact
from resia.events.errors import UsageError
from resia.runtime.store import Store
from resia.runtime.views import tail_lines

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
        ('"version":1', '"version":2', "event.version is 2; const: 1"),
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

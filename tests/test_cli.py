"""The command line and what a person gets wrong: exit code 2 and one sentence, never a traceback."""

from __future__ import annotations

import asyncio
import fcntl
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from given import clerk
from histories import World, play, run_request
from resia.events import OUTCOMES, DecisionMade, Draft, RunRequested
from resia.replay.digest import digest
from resia.replay.verify import blobs_named
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import connect
from resia.runtime.cli_options import Interrupted
from resia.runtime.cli_replay import stoppable
from resia.runtime.logs import configure_command_logs, configure_logs
from resia.runtime.server import EmbeddedServer

RUN = "scripted"
SYNTHETIC = ["--set", "domain_options.synthetic=true"]
HISTORY = play(run_request(patience_h=1, max_iterations=3), World(training=0.3), run=RUN)
OPEN = "begun"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose server runs, with one finished run and one that has only begun."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    server = EmbeddedServer(folder)
    access = server.start()
    asyncio.run(_fill(access))
    blobs = DirectoryBlobs(folder / "blobs")
    for data in HISTORY.blobs.values():
        blobs.put(data)
    yield folder
    server.stop()


async def _fill(access) -> None:
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    for run in (RUN, OPEN):
        await bus.create_run(run)
    await bus.append(OPEN, [clerk(OPEN).genesis(run_request())])
    numbered = zip(HISTORY.facts, HISTORY.records, strict=True)
    await bus.append(RUN, [Draft(fact.envelope.id, *record, fact.event) for fact, record in numbered])
    await bus.seal(RUN)
    await bus.set_status(RUN, "completed")
    await bus.close()


def sentence(said: tuple[int, str, str], code: int = 2) -> str:
    """The one line on standard error."""
    found, out, err = said
    assert (found, out) == (code, "")
    assert err.startswith("resia: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("resia: ").rstrip("\n")


# -- what is refused before anything starts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["assets", "fetch"], "No such command 'fetch'."),
        (["status", "--bogus"], "No such option: --bogus"),
        (["diff", "run"], "Missing argument 'a'."),
        (["run", "--seed", "x"], "Invalid value for '--seed'"),
        (["run", "--seed", "-1"], "setting seed is -1: expected `int` >= 0"),
        (["run", "--domain", "denosing"], "unknown domain 'denosing': did you mean denoising?"),
        (["run", "--mode", "WH"], "unknown mode 'WH': did you mean W+H or W or H?"),
        (["run", "--algorithm", "grop"], "unknown algorithm 'grop': did you mean grpo"),
        (["run", "--set", "loop.patince_h=1"], "'patince_h': did you mean patience_h"),
        (["run", "--set", "nonsense"], "--set takes name=value such as loop.patience_h=1, not 'nonsense'"),
        (["run", "--config", "no.toml"], "there is no settings file no.toml: check the name given to --config"),
        (["run", "--workers", "task"], "--workers takes role=number of at least 1, such as task=2, not 'task'"),
        (["run", "--workers", "task=0"], "not 'task=0'"),
        (["run", "--workers", "task=two"], "not 'task=two'"),
        (["run", "--workers", "tusk=2"], "unknown role 'tusk': did you mean task?"),
        (["run", "--resume", "x", "--seed", "0"], "--resume goes on with the run's own settings"),
        (["run", "--resume", "x", "--set", "seed=0"], "--resume goes on with the run's own settings"),
        (["run", "--resume", "x", "--config", "x.toml"], "--resume goes on with the run's own settings"),
        (["run", "--resume", "x", "--dry-run"], "--resume goes on with the run's own settings"),
        (["run", "--mode", "random", "--algorithm", "grpo"], "mode random trains nothing: leave algorithm grpo out"),
        (
            ["run", "--set", "loop.money_budget=1"],
            "price.models has no price of model 'smollm2-135m-instruct': set one",
        ),
        (["estimate", "--mode", "X"], "unknown mode 'X'"),
        (["compare", "--arms", "H,X"], "unknown arm 'X'"),
        (["compare", "--arms", "H", "--seeds", "1"], "--arms has 1 arm and a comparison needs two"),
        (["run", "--resume", "x", "--run", "y"], "--resume goes on with the run's own settings"),
        (["run", "--cache", "empty"], "asset 'smollm2-135m-instruct' is not on this machine; run: resia assets pull"),
        (["tail", "x", "--type", "decision-mad"], "unknown event type 'decision-mad': did you mean decision-made"),
        (["explain", "x"], "explain needs an iteration: write RUN@K with K from 1, such as 'x@1'"),
        (["explain", "x@0"], "'x@0' names no iteration"),
        (["explain", "x@one"], "'x@one' names no iteration"),
        (["replay", "x@1", "--at", "3"], "'x@1' already names an event: leave --at out"),
        (["replay", "x", "--depth", "deep"], "unknown depth 'deep': did you mean"),
        (["replay", "x", "--depth", "compute", "--verify"], "--verify is --depth decisions"),
        (["replay", "x", "--depth", "compute", "--only", "drafts"], "unknown work for --only 'drafts': did you mean"),
        (["replay", "x", "--only", "training"], "--only says what is performed again: it goes with --depth compute"),
        (["replay", "a b"], "run name 'a b' cannot be used"),
        (["assets", "pull", "smollm"], "unknown asset 'smollm': did you mean smollm2-135m-instruct"),
        (["worker", "start", "tsk"], "unknown role or worker 'tsk': did you mean task"),
        (
            ["worker", "start", "task", "--store", "none"],
            "no server runs over none: start a run there, or name a server",
        ),
        (["bench", "log", "--events", "1"], "Invalid value for '--events'"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(say, tmp_path, args, words):
    assert words in sentence(say(*args))
    assert not list(tmp_path.iterdir())  # and nothing was begun


def test_no_command_at_all_shows_what_there_is(say):
    code, out, err = say()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ")
    assert "replay" in err


def test_help_is_no_mistake(say):
    for args in (["--help"], ["run", "--help"], ["assets", "--help"]):
        code, out, err = say(*args)
        assert (code, err) == (0, "")
        assert "Usage:" in out


# -- stores and ports ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from resia.runtime.engines.tiny import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("model"))


def start(say, model, *args: object) -> tuple[int, str, str]:
    return say("run", "--set", f"engine.model={model}", *SYNTHETIC, *args)


def test_data_that_is_missing_names_the_command_that_fetches_it(say, model, tmp_path):
    found = sentence(say("run", "--cache", tmp_path / "empty", "--set", f"engine.model={model}"))
    assert found == "asset 'celltypist-sample' is not on this machine; run: resia assets pull celltypist-sample"


def test_a_taken_port(say, model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = sentence(start(say, model, "--port", port, "--store", tmp_path / "s"))
    assert found == f"port {port} is taken: leave --port out for a free one, or name another"


def test_a_port_that_does_not_exist(say, model, tmp_path):
    found = sentence(start(say, model, "--port", 70000, "--store", tmp_path / "s"))
    assert found.startswith("port 70000 does not exist: leave --port out")


def test_a_store_in_use_by_another(say, model, store):
    assert "is in use by another resia" in sentence(start(say, model, "--store", store))


def test_a_store_that_is_locked_and_answers_nobody(say, tmp_path, monkeypatch):
    monkeypatch.setattr("resia.runtime.server.READY_S", 0.1)
    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another resia holds the store" in sentence(say("status", "--store", tmp_path / "s"), code=1)


def test_a_store_that_is_a_file(say, tmp_path):
    (tmp_path / "s").write_text("")
    assert "there is no store at" in sentence(say("status", "--store", tmp_path / "s"))


def test_a_name_that_no_run_can_have(say, model, tmp_path):
    found = sentence(start(say, model, "--run", "my run", "--store", tmp_path / "s"))
    assert found.startswith("run name 'my run' cannot be used: take 1 to 64 letters")


# -- reading commands over a real log --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["replay", "scriptd"],
        ["status", "scriptd"],
        ["tail", "scriptd"],
        ["explain", "scriptd@1"],
        ["diff", "scriptd", 0, 1],
    ],
)
def test_an_unknown_run_offers_the_nearest(say, store, args):
    assert sentence(say(*args, "--store", store)) == "unknown run 'scriptd': did you mean scripted?"


@pytest.mark.parametrize("command", ["status", "tail", "replay"])
@pytest.mark.parametrize("name", ["a b", "a.b", ">", "../x"])
def test_a_name_that_no_run_can_have_is_no_trouble_of_the_server(say, store, command, name):
    assert "cannot be used: take 1 to 64 letters" in sentence(say(command, name, "--store", store))


def test_a_worker_for_an_unknown_run(say, store):
    assert "unknown run 'nope'" in sentence(say("worker", "start", "task", "--run", "nope", "--store", store))


@pytest.mark.parametrize("at", [0, -1, 10**9])
def test_an_event_number_past_the_end(say, store, at):
    found = sentence(say("replay", RUN, "--at", at, "--store", store))
    assert found == f"run '{RUN}' has events 1 to {len(HISTORY.facts)}; there is no event {at}"


def test_an_iteration_that_was_not_reached(say, store):
    last = len(HISTORY.of(DecisionMade))
    assert f"there is no iteration {last + 1}" in sentence(say("replay", f"{RUN}@{last + 1}", "--store", store))
    assert f"iteration {last + 1} is not in this run" in sentence(say("explain", f"{RUN}@{last + 1}", "--store", store))


@pytest.mark.parametrize(("a", "b"), [("0", "99"), ("champ", "0"), ("-1", "0"), ("x", "y")])
def test_a_candidate_that_was_not_measured(say, store, a, b):
    found = sentence(say("diff", "--store", store, "--", RUN, a, b))
    assert any(name in found for name in (a, b))


def test_a_run_that_has_only_begun_can_be_read(say, store):
    code, out, _ = say("status", OPEN, "--store", store)
    assert code == 0
    assert f"{OPEN}: running" in out
    assert say("replay", OPEN, "--store", store)[0] == 0
    assert "no iteration" in sentence(say("replay", f"{OPEN}@1", "--store", store))
    assert sentence(say("explain", f"{OPEN}@1", "--store", store))
    assert sentence(say("diff", OPEN, "0", "champion", "--store", store))


def lines(said: tuple[int, str, str]) -> list[dict]:
    code, out, err = said
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    return [json.loads(line) for line in out.splitlines()]


def test_json_is_one_object_a_line(say, store):
    runs = lines(say("status", "--json", "--store", store))
    assert [(r["run"], r["status"]) for r in runs] == [(OPEN, "active"), (RUN, "completed")]
    (status,) = lines(say("status", RUN, "--json", "--store", store))
    assert (status["run"], status["status"]) == (RUN, "completed")
    assert len(status["candidates"]) == len(HISTORY.state.trials)
    (explained,) = lines(say("explain", f"{RUN}@1", "--json", "--store", store))
    assert explained["iteration"] == 1
    (changed,) = lines(say("diff", RUN, "0", "champion", "--json", "--store", store))
    assert changed["run"] == RUN
    assert all("asset" in found for found in lines(say("assets", "list", "--json")))


def test_tail_prints_the_log_and_can_pick_types(say, store):
    every = lines(say("tail", RUN, "--json", "--store", store))
    assert [line["sequence"] for line in every] == list(range(1, len(HISTORY.facts) + 1))
    picked = lines(
        say("tail", RUN, "--json", "--follow", "--type", "decision-made", "--type", "run-requested", "--store", store)
    )
    assert len(picked) == len(HISTORY.of(DecisionMade, RunRequested))
    code, out, _ = say("tail", RUN, "--store", store)
    assert (code, len(out.splitlines())) == (0, len(HISTORY.facts))


@pytest.mark.parametrize("args", [[], ["--depth", "state"], ["--depth", "decisions"], ["--verify"]])
def test_a_sound_log_replays_at_every_depth(say, store, args):
    (whole,) = lines(say("replay", RUN, *args, "--json", "--store", store))
    assert whole["depth"] == ("decisions" if args[-1:] in (["decisions"], ["--verify"]) else "state")
    assert (whole["status"], whole["events"], whole["divergences"]) == ("completed", len(HISTORY.facts), [])
    assert whole["digest"] == digest(HISTORY.state)
    assert "moment" not in whole


def test_replay_gives_the_state_and_the_harness_of_any_event(say, store, tmp_path):
    (again,) = lines(say("replay", RUN, "--at", len(HISTORY.facts), "--json", "--store", store))
    assert again["digest"] == digest(HISTORY.state)
    (first,) = lines(say("replay", f"{RUN}@1", "--json", "--store", store))
    assert first["iteration"] == 1
    assert first["digest"] != again["digest"]
    assert first["moment"]["harness"] == first["champion"]["harness"]
    code, out, err = say("replay", f"{RUN}@1", "--out", tmp_path / "out", "--store", store)
    assert (code, err) == (0, "")
    assert "system prompt, with 0 demonstrations:\n  Answer.\n" in out
    assert json.loads((tmp_path / "out" / "moment.json").read_text()) == first["moment"]
    assert "out is not empty" in sentence(say("replay", f"{RUN}@1", "--out", tmp_path / "out", "--store", store))


def test_before_the_first_champion_there_is_nothing_to_export(say, store, tmp_path):
    code, out, _ = say("replay", RUN, "--at", 2, "--store", store)
    assert (code, "there is no champion yet at this event" in out) == (0, True)
    found = sentence(say("replay", RUN, "--at", 2, "--out", tmp_path / "out", "--store", store))
    assert found.startswith(f"run '{RUN}' has no champion at event 2 to export: take --at ")


def test_what_cannot_be_performed_here_is_listed_and_is_no_divergence(say, store):
    """The log's model is of another digest, and its package is not this one."""
    said = say("replay", RUN, "--depth", "compute", "--json", "--store", store)
    (found,) = lines(said)
    assert (found["depth"], found["divergences"], found["performed"]) == ("compute", [], {})
    outcomes = [f.sequence for f in HISTORY.facts if isinstance(f.event, OUTCOMES)]
    assert [unsaid["event"] for unsaid in found["not_comparable"]] == outcomes
    assert all(unsaid["fields"]["package"][0] in ("0", "1.0") for unsaid in found["not_comparable"])


def test_a_damaged_blob_fails_the_verification_with_its_event(say, store):
    victim = next(p for p in sorted((store / "blobs").rglob("*")) if p.is_file())
    kept = victim.read_bytes()
    victim.write_bytes(b"damaged")
    code, out, err = say("replay", RUN, "--verify", "--store", store)
    code_json, line, _ = say("replay", RUN, "--depth", "decisions", "--json", "--store", store)
    shallow = say("replay", RUN, "--store", store)[0]
    victim.write_bytes(kept)
    assert (code, err) == (1, "")
    assert f"(blob): blob {victim.name[:12]}" in out
    (divergence,) = json.loads(line)["divergences"]
    assert (code_json, divergence["kind"]) == (1, "blob")
    assert divergence["why"].startswith(f"blob {victim.name[:12]}")
    named = [blob.digest for blob in blobs_named(HISTORY.facts[divergence["event"] - 1].event)]
    assert victim.name in named
    assert shallow == 0  # the state depth reads the log only


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_replay_that_is_stopped_says_so(name):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), stoppable():
        signal.raise_signal(signal.Signals[name])
    assert signal.getsignal(signal.SIGTERM) == before


def test_texts_for_people_hold_the_same(say, store):
    code, out, err = say("status", RUN, "--store", store)
    assert (code, err) == (0, "")
    assert f"{RUN}: completed" in out
    assert "control: random-search" in out
    code, out, _ = say("diff", RUN, "0", "champion", "--store", store)
    assert code == 0
    assert "scores: " in out


def test_an_external_server_that_does_not_answer(say, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = sentence(say("status", "--nats", f"nats://127.0.0.1:{port}"), code=1)
    assert found.startswith(f"no event log answers at nats://127.0.0.1:{port}")
    assert "--nats" in found


# -- start -----------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "numpy", "scipy", "sklearn", "datasets")


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["nope"], ["run", "--domain", "X"]])
def test_help_and_wrong_words_load_nothing_heavy(args, tmp_path):
    program = (
        "import sys\nfrom resia.runtime.cli import main\n"
        f"main({args!r})\n"
        f"sys.stderr.write('LOADED ' + ' '.join(m for m in {(*HEAVY, 'nats')!r} if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.rpartition("LOADED ")[2].split()
    assert loaded in ([], ["nats"] if args[1:] == ["--domain", "X"] else [])


def test_the_command_itself_exits_with_the_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "resia.runtime.cli", "run", "--mode", "X"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "resia: unknown mode 'X': did you mean H or W or W+H or best-of-n or random?\n"


def test_a_worker_that_a_command_starts_logs_what_it_handles(capsys):
    configure_command_logs()
    structlog.get_logger().info("not said by a command")
    configure_logs()
    structlog.get_logger().info("handled", number=3)
    structlog.reset_defaults()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "handled"


def test_what_libraries_log_in_a_worker_has_the_form_of_its_own_lines():
    code = (
        "import logging, structlog, warnings\n"
        "from resia.runtime.logs import configure_logs\n"
        "configure_logs()\n"
        "with structlog.contextvars.bound_contextvars(run='r', iteration=2):\n"
        "    logging.getLogger('other').warning('not %s', 'sent')\n"
        "    warnings.warn('old', stacklevel=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["logger"], line["level"], line["run"], line["iteration"]) for line in lines] == [
        ("other", "warning", "r", 2),
        ("py.warnings", "warning", "r", 2),
    ]
    assert (lines[0]["event"], done.stderr) == ("not sent", "")

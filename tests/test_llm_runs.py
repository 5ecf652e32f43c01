"""Whole runs with the proposer `llm`: real processes and a real server over the tests' taught model, and an endpoint
that says what was recorded, is out of order, or is the embedded model behind `resia serve`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from chat_given import ASKED, KEY, endpoint, failing, llm_settings, recorded

from resia.agents.llm import Exchange
from resia.events import DraftFailed, EditFailed, EditRequested, Fact, HarnessDrafted, HarnessEdited, RunCompleted
from resia.events.errors import BusError, UsageError
from resia.replay.digest import digest
from resia.replay.report import summary
from resia.runtime import supervisor
from resia.runtime.cli import main
from resia.runtime.cli_options import INTERRUPTED, USAGE
from resia.runtime.config import load_settings
from resia.runtime.engines.openai_chat import OpenAiChat
from resia.runtime.engines.tiny import build_tiny_model
from resia.runtime.forking import prepare
from resia.runtime.reading import load
from resia.runtime.recompute import performances, recompute
from resia.runtime.replaying import verify_log
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch
from resia.runtime.store import Store

KEY_ENV = "RESIA_TEST_ENDPOINT_KEY"
WORKERS = {**DEFAULT_WORKERS, "trainer": 0}
SETTINGS = [
    "domain_options.synthetic=true",
    "domain_options.search_items=3",
    "domain_options.test_items=2",
    "engine.threads=1",
    "loop.mode=H",
    "loop.patience_h=4",
    "selection.format_failures_doubles_patience=1.0",
    "sampling.group_size=4",
    "seed=3",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import tiny_agent

    return tiny_agent.unpack(tmp_path_factory.mktemp("taught"))


def asking(url: str, *more: str) -> list[str]:
    return ["proposer=llm", f"llm.base_url={url}", "llm.model=recorded-1", "llm.retries=1", *more]


def session(store: Store, model: Path, run: str, *settings: str) -> Session:
    return Session(run, load_settings(None, [*SETTINGS, f"engine.model={model}", *settings]), store, WORKERS)


def events(store: Store, run: str, *types: type) -> list:
    log = asyncio.run(load(store, run))
    return [fact.event for fact in log.facts if isinstance(fact, Fact) and isinstance(fact.event, types)]


def exchange(store: Store, event) -> Exchange:
    return msgspec.json.decode(store.blobs().get(event.exchange), type=Exchange)


# -- recorded replies --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory, model):
    """A run whose endpoint is in trouble at first and repeats its key whenever it can."""
    store = Store(tmp_path_factory.mktemp("recorded"))
    replies = ("prose", "edit_retry_policy", "source_loops", "edit_tool_dispatch", "prose")
    with endpoint(
        failing(500, "trouble of {{KEY}}", Retry_After="0"),
        recorded("draft"),
        recorded("edit_system_prompt"),
        *map(recorded, replies),
    ) as there:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KEY_ENV, KEY)
            settings = asking(there.url, f"llm.key_env={KEY_ENV}", "llm.tries=2")
            state = asyncio.run(launch(session(store, model, "recorded", *settings), Watch()))
        heard = list(there.keys)
    return store, state, heard


def test_a_run_completes_on_recorded_replies(recorded_run):
    store, state, keys = recorded_run
    assert isinstance(state.ending, RunCompleted)
    assert set(keys) == {f"Bearer {KEY}"}
    (drafted,) = events(store, "recorded", HarnessDrafted)
    assert drafted.proposer == "llm"
    assert exchange(store, drafted).said[0].failures == ("HTTP 500: trouble of [key]",)
    edits = events(store, "recorded", HarnessEdited, EditFailed)
    assert [e.component for e in edits[:3] if isinstance(e, HarnessEdited)] == [
        "system_prompt",
        "retry_policy",
        "tool_dispatch",
    ]
    assert isinstance(edits[-1], EditFailed)
    assert all(e.operators == ("llm",) for e in events(store, "recorded", EditRequested))
    assert {t.name for t in state.trials if t.lever == "edit_harness"} == {"llm"}


def test_what_was_asked_counts_in_the_budget(recorded_run):
    store, state, _ = recorded_run
    asked = events(store, "recorded", HarnessDrafted, HarnessEdited, EditFailed)
    spent = sum(e.prompt_tokens + e.completion_tokens for e in asked)
    assert spent > 9000
    assert summary(state).tokens == state.ledger.tokens > spent


def test_it_replays_without_the_endpoint(recorded_run):
    """The endpoint is gone by now, and the key too."""
    store, state, _ = recorded_run
    log = asyncio.run(load(store, "recorded"))
    assert digest(log.at()) == digest(state)
    assert verify_log(log, store).problems == ()


def test_performing_again_leaves_the_outside_party_alone_and_says_so(recorded_run):
    store, _, _ = recorded_run
    log = asyncio.run(load(store, "recorded"))
    works = [w for w in performances(log) if w.request.envelope.type in ("run-requested", "edit-requested")]
    found = recompute(log, store.blobs(), works)
    assert (found.performed, found.problems) == ({}, ())
    assert len(found.not_comparable) == len(works) > 3
    assert {n.why for n in found.not_comparable} == {
        "model recorded-1 behind an endpoint proposed it, an outside party"
    }


def test_the_key_is_nowhere_on_disk(recorded_run):
    store, _, _ = recorded_run
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    assert {"meta-1.log", "feedback-1.log", "feedback-1.json"} <= {path.name for path in files}
    assert [path for path in files if b"[key]" in path.read_bytes()]  # where the endpoint had repeated it
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


# -- endpoints that fail -----------------------------------------------------------------------------------------------


def test_a_model_that_is_not_there_ends_the_run_by_name(tmp_path, model):
    store = Store(tmp_path)
    with endpoint(failing(404, "no")) as there:
        state = asyncio.run(launch(session(store, model, "refused", *asking(there.url)), Watch()))
    assert state.status == "failed"
    assert "HTTP 404: there is no such model or path" in state.ending.error
    (failed,) = events(store, "refused", DraftFailed)
    assert exchange(store, failed).error == failed.error


def test_an_outage_stops_the_run_and_it_goes_on_when_the_endpoint_answers(tmp_path, model, monkeypatch):
    """Nothing is settled in the outage, so no patience is spent: the one edit that is allowed is made after it."""
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 1)
    store = Store(tmp_path)
    down = failing(503, "maintenance", Retry_After="0")
    with endpoint(recorded("draft"), down) as there:
        settings = asking(there.url, "loop.patience_h=1", "loop.max_iterations=2", "llm.retries=1")
        with pytest.raises(BusError, match=r"feedback-1 keeps failing: .*maintenance.*resia run --resume outage"):
            asyncio.run(launch(session(store, model, "outage", *settings), Watch()))
        assert events(store, "outage", EditFailed, HarnessEdited) == []
        there.replies.append(recorded("edit_retry_policy"))
        there.replies[1] = there.replies[-1]
        state = asyncio.run(launch(Session("outage", None, store, WORKERS), Watch()))
    assert isinstance(state.ending, RunCompleted)
    (edited,) = events(store, "outage", HarnessEdited)
    assert edited.component == "retry_policy"


def test_a_missing_key_is_named_before_anything_is_written(tmp_path, model, monkeypatch):
    monkeypatch.delenv(KEY_ENV, raising=False)
    asked = session(Store(tmp_path / "s"), model, "keyless", *asking("https://x.example/v1", f"llm.key_env={KEY_ENV}"))
    with pytest.raises(UsageError, match=f"environment variable {KEY_ENV}, which llm.key_env names, is not set"):
        asyncio.run(launch(asked, Watch()))
    assert not (tmp_path / "s").exists()


def test_the_command_says_it_in_one_sentence(tmp_path, model, capsys):
    code = main(["run", "--store", str(tmp_path / "s"), "--set", "proposer=llm"])
    assert code == USAGE
    assert "proposer llm needs llm.base_url" in capsys.readouterr().err


# -- the embedded model behind `resia serve` ---------------------------------------------------------------------------


class Serve:
    """`resia serve` as a process: its JSON line, and Ctrl-C."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-m", "resia.runtime.cli", "serve", "--json", *args]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        self.told = json.loads(line)

    def interrupt(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=60)
        return self._process.returncode, said


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = build_tiny_model(tmp_path_factory.mktemp("garbage"), context=32_768)
    there = Serve("--model", str(folder), "--threads", "1")
    yield there
    code, said = there.interrupt()
    assert code == INTERRUPTED
    assert "serving" in said
    assert "Traceback" not in said


def garbage(served: Serve) -> list[str]:
    more = ("llm.max_tokens=32", "llm.prompt_tokens=4000", "llm.tries=2")
    return asking(served.told["url"], f"llm.model={served.told['model']}", *more)


def test_a_model_that_answers_garbage_cannot_draft_and_the_run_says_so(served, tmp_path, model):
    store = Store(tmp_path)
    state = asyncio.run(launch(session(store, model, "drafting", *garbage(served)), Watch()))
    assert state.status == "failed"
    assert state.ending.error.startswith("no harness could be drafted: no valid reply in 2")
    (failed,) = events(store, "drafting", DraftFailed)
    assert len(exchange(store, failed).said) == 2
    assert state.ledger.tokens == failed.prompt_tokens + failed.completion_tokens > 0


def test_a_model_that_answers_garbage_fails_its_edits_and_the_run_ends_in_order(served, tmp_path, model):
    """Drafted by the embedded proposer, forked at its first decision to one that asks the served model."""
    store = Store(tmp_path)
    asyncio.run(launch(session(store, model, "embedded", "loop.max_iterations=1"), Watch()))

    async def forked():
        sets = [*garbage(served), "loop.max_iterations=9", "loop.patience_h=2"]
        child = await prepare(store, "embedded@1", sets, None, "asked")
        return await launch(Session(child.run, None, store, WORKERS, request=child.request), Watch())

    state = asyncio.run(forked())
    assert isinstance(state.ending, RunCompleted)
    failed = events(store, "asked", EditFailed)
    assert len(failed) == 2
    assert all(event.error.startswith("no valid reply in 2") for event in failed)
    assert [len(exchange(store, event).said) for event in failed] == [2, 2]
    assert state.ending.reason.startswith("no edit: 2 failed edits reach the patience of 2")
    assert verify_log(asyncio.run(load(store, "asked")), store).problems == ()


def test_the_champion_of_a_run_is_served(recorded_run):
    store, _, _ = recorded_run
    there = Serve("--run", "recorded", "--store", str(store.folder), "--threads", "1")
    try:
        assert there.told["model"] == "recorded"
        assert there.told["adapter"] is None  # mode H trains none
        asked = llm_settings(there.told["url"], model="recorded", temperature=0.0, max_tokens=32)
        reply = OpenAiChat(asked, "").complete(ASKED)
        assert reply.completion_tokens > 0
    finally:
        assert there.interrupt()[0] == INTERRUPTED

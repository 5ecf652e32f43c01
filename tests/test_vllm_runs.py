"""A whole run that a real vLLM server samples, where there is one; skipped where none can be had."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_given import real_server

from given import SETTINGS
from resia.events import DriftMeasured, DriftRequested, Fact, RunCompleted, ShardSampled
from resia.runtime.config import load_settings
from resia.runtime.reading import load
from resia.runtime.replaying import verify_log
from resia.runtime.session import Session, Watch, launch
from resia.runtime.store import Store
from resia.runtime.vllm_serving import Server

pytestmark = pytest.mark.timeout(900)  # a server imports for half a minute, and for minutes beside others


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_agent

    return tiny_agent.unpack(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with real_server(model, tmp_path_factory.mktemp("logs")) as made:
        yield made


def test_a_run_samples_trains_and_compares_over_a_server(server, model, tmp_path):
    engine = ["engine.kind=vllm", f"engine.model={model}", f'engine.urls=["{server.url}"]']
    settings = load_settings(None, [*SETTINGS, *engine])
    store = Store(tmp_path / "store")
    state = asyncio.run(launch(Session("served", settings, store, cache=tmp_path), Watch()))
    assert isinstance(state.ending, RunCompleted)
    log = asyncio.run(load(store, "served"))
    assert verify_log(log, store).problems == ()
    events: list[Any] = [fact.event for fact in log.facts if isinstance(fact, Fact)]
    shards = [event for event in events if isinstance(event, ShardSampled)]
    assert {shard.manifest.engine for shard in shards} == {"vllm 0.32.0"}
    assert not any(shard.failed for shard in shards)
    asked = [event.candidate.adapter for event in events if isinstance(event, DriftRequested)]
    assert asked[0] is None
    assert asked[1] is not None
    drifts = [event for event in events if isinstance(event, DriftMeasured)]
    assert drifts
    assert all(drift.largest < 1e-4 and drift.tokens > 100 and not drift.alarmed for drift in drifts)

"""Whole runs whose answers are kernels: every role on a real server, the model scripted, the kernels run for real."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import scripted_bench
import structlog
from kernels_given import HONEST, QUICK
from scripted import ScriptedEngine
from whole_runs import Quick, play

from resia.agents.code_sources import block
from resia.domains.trimul.kernel_form import PLAIN_SOURCE
from resia.events import (
    Fact,
    HarnessEdited,
    KernelRejected,
    KernelSubmitted,
    RolloutRecorded,
    RunCompleted,
)
from resia.events.ids import seed_for
from resia.kernels import bench
from resia.kernels.ports import Limits
from resia.replay.digest import digest
from resia.replay.verify import check
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.chamber.process import ProcessChamber
from resia.runtime.config import load_settings
from resia.runtime.reading import read_log
from resia.runtime.recompute import performances
from resia.runtime.roles import ROLE_NAMES, deciders, role
from resia.runtime.session import first_event
from resia.runtime.worker import Clerk, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a chamber needs Linux")
torch = pytest.importorskip("torch", reason="torch is not installed")
LIMIT_S = 240
GROUP = 6


def kernel(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{HONEST}\ndef custom_kernel(x, mask, weights, config):\n{lines}\n"


UNPARSED = f"def custom_kernel(  # {scripted_bench.BROKEN}\n"
# What the model writes first, by the index of a search rollout, and how it is to be counted.
FIRST = {
    0: (UNPARSED, "tool_error", "compile"),
    1: (kernel("return torch.ones_like(x)"), "wrong", "wrong"),  # the exploit: a constant
    2: (kernel("return honest(x, mask, weights, config).half()"), "wrong", "dtype"),
    3: (kernel("while True: pass"), "timeout", "timeout"),
    4: (kernel("return torch.ones(1 << 36)"), "sandbox_violation", "memory"),
    5: (PLAIN_SOURCE, None, ""),
}
SETTINGS = [
    "domain=trimul",
    "domain_options.form=source",
    "domain_options.suite=smoke",
    "domain_options.protocol=gpumode",
    "domain_options.search_items=1",
    "domain_options.validation_items=3",
    "domain_options.test_items=1",
    "engine.threads=1",
    "loop.mode=H",
    "loop.max_iterations=1",
    f"sampling.group_size={GROUP}",
    "gate.min_items=3",
    "gate.alpha=0.3",
    "seed=5",
]


INDEX = {seed_for(5, "rollout", "search-00", index): index for index in FIRST}


@pytest.fixture(autouse=True)
def leases(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    from resia.runtime.engines.tiny import build_tiny_model

    model = build_tiny_model(tmp_path_factory.mktemp("tiny"), 0)
    return load_settings(None, [*SETTINGS, f"engine.model={model}"])


class Authors(Quick):
    """Resources with a model that writes kernels: bad ones, and the plain one when it is told what is wrong."""

    def _load_engine(self, settings, digest):
        def says(prompt: str, seed: int) -> str:
            told = "is no valid answer" in prompt
            return block(PLAIN_SOURCE if told else FIRST[INDEX.get(seed, 0)][0])

        return ScriptedEngine(says)


class Benching(Authors):
    """With a chamber that is quick to give up."""

    def _start_chamber(self, threads):
        return ProcessChamber(Limits(load_s=20.0, call_s=1.0, memory_bytes=2 << 30, threads=threads))


def recorded(log, split: str) -> list[RolloutRecorded]:
    events = [fact.event for fact in log.facts if isinstance(fact, Fact)]
    return [event for event in events if isinstance(event, RolloutRecorded) and event.split == split]


async def test_a_run_learns_to_mend_kernels_and_counts_bad_ones_as_what_they_are(bus, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.BenchPorts, "__new__", _quick(bench.BenchPorts.__new__))
    resources = Benching(DirectoryBlobs(tmp_path / "blobs"), None, False)
    try:
        log = await asyncio.wait_for(play(bus, "kernels", settings, resources), LIMIT_S)
    finally:
        resources.close()
    state = log.at()
    assert isinstance(state.ending, RunCompleted), state.ending
    facts = [fact for fact in log.facts if isinstance(fact, Fact)]
    (edited,) = (fact.event for fact in facts if isinstance(fact.event, HarnessEdited))
    assert edited.operator == "attempt-first"
    assert state.champion.candidate.harness == edited.harness
    first = [event for event in recorded(log, "search") if not event.greedy][:GROUP]
    for event in first:
        _, failure, word = FIRST[event.index]
        assert event.failure == failure, (event.index, event.detail)
        assert event.detail.startswith(word)
        assert (event.reward > 0) == (failure is None)
    mended = recorded(log, "validation")[3:6]
    assert [event.reward for event in mended] == [0.5] * 3  # the plain kernel beside itself
    kinds = Counter(type(fact.event) for fact in facts)
    submitted = [fact.event for fact in facts if isinstance(fact.event, KernelSubmitted)]
    assert len({event.key for event in submitted}) == len(submitted) == kinds[KernelSubmitted]
    rejected = {fact.event.failure for fact in facts if isinstance(fact.event, KernelRejected)}
    assert rejected == {"compile", "wrong", "dtype", "timeout", "memory"}
    assert {(c.name, c.mean) for c in state.controls.scores} == {("plain", 0.5)}
    found = check(facts, deciders())
    assert found.problems == ()
    assert found.digest == digest(state)
    compared = [fact.event for work in performances(log) for fact in work.recorded.values()]
    assert not any(isinstance(event, KernelSubmitted) for event in compared)  # what is asked is no outcome


def _quick(made):
    """The bench's ports with few repeats."""
    return lambda cls, *args, **more: made(cls, *args, **{**more, "budget": QUICK})


async def run_with_scripted_bench(bus, access, run: str, settings, folder: Path, kill: bool):
    """The run's log; its bench is a process, killed with a kernel in hand where `kill` says so."""
    resources = Authors(DirectoryBlobs(folder / "blobs"), None, False)
    user, password = access.login("kernel-bench")
    orders = scripted_bench.Orders(access.url, user, password, run, str(folder / "blobs"))
    await bus.create_run(run)
    await bus.append(run, [Clerk(run, "user", "test", "0", time.time).genesis(first_event(settings, None))])
    roles = [role(name, resources, lambda _: lambda _: None) for name in ROLE_NAMES if name != "kernel-bench"]
    tasks = [
        asyncio.create_task(Worker(bus, r, Clerk(run, r.name, f"{r.name}-1", "0", time.time)).serve()) for r in roles
    ]
    if kill:
        held = folder / "held"
        process = _started(msgspec.structs.replace(orders, hold=str(held)))
        while not held.exists():
            assert process.poll() is None
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = _started(orders)
    try:
        await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)
        assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
    finally:
        process.kill()
        resources.close()
    return await read_log(bus, run)


def _started(orders: scripted_bench.Orders) -> subprocess.Popen[bytes]:
    command = [sys.executable, scripted_bench.__file__, msgspec.json.encode(orders).decode()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def test_a_bench_killed_with_a_kernel_in_hand_changes_nothing(bus, access, settings, tmp_path):
    logs = [
        await run_with_scripted_bench(bus, access, f"bench-{name}", settings, tmp_path / name, kill)
        for name, kill in (("undisturbed", False), ("killed", True))
    ]
    states = [log.at() for log in logs]
    assert all(isinstance(state.ending, RunCompleted) for state in states)
    assert digest(states[0]) == digest(states[1])
    submitted = [[f.event.key for f in log.facts if isinstance(f.event, KernelSubmitted)] for log in logs]
    assert Counter(submitted[0]) == Counter(submitted[1])
    assert set(Counter(submitted[1]).values()) == {1}
    assert len(states[1].kernels) == len([k for k in states[1].kernels.values() if k.verdict])

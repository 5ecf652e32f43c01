"""A run that waits for a role that nobody serves says which."""

from __future__ import annotations

import asyncio

import pytest

from given import SETTINGS
from resia.runtime import unserved as module
from resia.runtime.bus import Bus
from resia.runtime.config import load_settings
from resia.runtime.session import _needed, parse_workers
from resia.runtime.unserved import Quiet, tell_waiting, unserved


async def test_a_role_is_served_while_a_process_waits_for_its_work(bus: Bus, run: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOOK_S", 0.2)
    async with bus.durable(run, "task", ["rollouts-requested"]) as durable:
        assert await unserved(bus, run, ["meta", "task"]) == ("meta", "task")
        waiting = asyncio.create_task(durable.take(30))
        assert await unserved(bus, run, ["meta", "task"]) == ("meta",)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (str, "no process serves feedback: start one with resia worker start ROLE"),
        (lambda run: f"{run}-gone", "nothing moves: read the log of run"),
    ],
    ids=["a role", "the log"],
)
async def test_it_is_told_once_nothing_is_heard(bus: Bus, run: str, name, says, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    told = asyncio.Queue[str]()
    task = asyncio.create_task(tell_waiting(bus, name(run), ["feedback"], Quiet(), told.put_nowait))
    assert says in await asyncio.wait_for(told.get(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("mode", "workers", "elsewhere"),
    [
        ("W", ["none"], {"meta", "task", "feedback", "trainer"}),
        ("H", ["none"], {"meta", "task", "feedback"}),
        ("W", ["trainer=0"], {"trainer"}),
        ("H", ["trainer=0"], set()),
    ],
)
def test_only_roles_that_the_run_cannot_do_without_are_missed(mode, workers, elsewhere):
    settings = load_settings(None, [*SETTINGS, f"loop.mode={mode}"])
    found = _needed(parse_workers(workers), settings)
    assert {role for role, count in found.items() if not count} == elsewhere

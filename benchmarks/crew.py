"""Task workers that share one evaluation, as many processes as asked for, beside the same work without a log.

The processes are those that `resia run` starts; they serve every active run, so each evaluation is a run of its own.
The floor performs the same shards in this process, one after the other: same engine, sandbox, domain and blobs, nothing
appended, nothing handed out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from resia.agents.proposing import draft
from resia.events import EvaluationCompleted, Fact, HarnessDrafted, RolloutRecorded, RolloutsRequested, RunFailed
from resia.replay.fold import fold
from resia.runtime.asking import RecordedLine
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus
from resia.runtime.config import ProcessConfig, load_settings
from resia.runtime.resources import Resources, package_version
from resia.runtime.roles import role
from resia.runtime.server import Access
from resia.runtime.session import first_event
from resia.runtime.supervisor import Supervisor
from resia.runtime.worker import Clerk, cancelled

LOOK_S = 0.05
ROLE = "task"


class Size(NamedTuple):
    """What one evaluation samples: `items` search items, `group` times each, in shards of `shard` rollouts."""

    items: int
    group: int
    shard: int
    rounds: int


class Evaluated(NamedTuple):
    seconds: float
    rollouts: int
    workers: int  # that took part
    events: int


async def rates(
    bus: Bus, access: Access, folder: Path, model: Path, counts: Sequence[int], size: Size, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a number of processes, which grows from row to row."""
    blobs, keeping = folder / "blobs", list[asyncio.Task[None]]()
    supervisor = Supervisor(folder / "workers", 1, lambda died: say(f"{died.worker} died and was started again"))
    rows = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stopped, supervisor, keeping)
        resources = Resources(DirectoryBlobs(folder / "floor"), None, False)
        stack.callback(resources.close)
        for count in counts:
            for number in range(len(keeping) + 1, count + 1):
                keeping.append(asyncio.create_task(supervisor.keep(_config(access, blobs, number))))
            say(f"{count} task workers")
            await _evaluate(bus, f"warm-{count}", blobs, model, count, size)
            found = [
                await _round(bus, f"at-{count}-{n}", blobs, model, count, size, resources) for n in range(size.rounds)
            ]
            pids = [supervisor.pid(f"{ROLE}-{number}") for number in range(1, count + 1)]
            rows.append(_row(count, found, [memory_mb(pid) for pid in pids if pid]))
    return rows


async def _stopped(supervisor: Supervisor, keeping: list[asyncio.Task[None]]) -> None:
    await supervisor.stop()
    await cancelled(keeping)


def _config(access: Access, blobs: Path, number: int) -> ProcessConfig:
    user, password = access.login(ROLE)
    name = f"{ROLE}-{number}"
    return ProcessConfig(url=access.url, user=user, password=password, role=ROLE, worker=name, blobs=blobs)


def _row(count: int, found: list[tuple[Evaluated, float]], memory: list[float]) -> dict[str, Any]:
    rate = max(one.rollouts / one.seconds for one, _ in found)
    floor = max(floor for _, floor in found)
    return {
        "workers": count,
        "rollouts_per_s": round(rate, 2),
        "floor_rollouts_per_s": round(floor, 2),
        "ratio": round(max(one.rollouts / one.seconds / alone for one, alone in found), 3),
        "rollouts": found[0][0].rollouts,
        "took_part": min(one.workers for one, _ in found),
        "events_per_rollout": round(found[0][0].events / found[0][0].rollouts, 3),
        "worker_memory_mb": round(sum(memory) / len(memory), 1),
    }


async def _round(
    bus: Bus, run: str, blobs: Path, model: Path, count: int, size: Size, resources: Resources
) -> tuple[Evaluated, float]:
    """The evaluation by `count` processes, and the floor's rollouts a second for the same shards right after."""
    found = await _evaluate(bus, run, blobs, model, count, size)
    facts = [fact async for fact in bus.read(run) if isinstance(fact, Fact)]
    asked = [(fact, fact.event) for fact in facts if isinstance(fact.event, RolloutsRequested)]
    state = fold(facts[: asked[-1][0].sequence])
    perform = role(ROLE, resources, lambda _: lambda _: None).perform
    assert perform is not None
    line = RecordedLine(lambda: state)
    resources.blobs.put(DirectoryBlobs(blobs).get(asked[0][1].candidate.harness))
    list(perform(state, asked[0][0], line))  # the model is loaded and warm, as the processes' are
    started = time.perf_counter()
    for fact, _ in asked:
        list(perform(state, fact, line))
    return found, found.rollouts / (time.perf_counter() - started)


async def _evaluate(bus: Bus, run: str, blobs: Path, model: Path, count: int, size: Size) -> Evaluated:
    """From the first harness to the closed evaluation of a run of its own, with `count` processes waiting for it."""
    overrides = {
        "domain_options.synthetic": "true",
        "domain_options.search_items": size.items,
        "sampling.group_size": size.group,
        "sampling.shard_size": size.shard,
        "engine.threads": 1,
        "engine.model": model,
        "loop.mode": "H",
    }
    settings = load_settings(None, [f"{key}={value}" for key, value in overrides.items()])
    await bus.create_run(run)
    user, meta = (Clerk(run, name, "bench", package_version(), time.time) for name in ("user", "meta"))
    request = first_event(settings, None)
    genesis = user.genesis(request)
    await bus.append(run, [genesis])
    await attached(bus, run, count)
    (first,) = [fact async for fact in bus.read(run) if isinstance(fact, Fact)]
    domain = Resources(DirectoryBlobs(blobs), None, False).domain(request)
    ((drafted,),) = draft(first, domain, DirectoryBlobs(blobs))
    assert isinstance(drafted, HarnessDrafted)
    started = time.perf_counter()
    await bus.append(run, [meta.draft(genesis.id, 1, drafted, "bench", 0)])
    workers, rollouts, events = set[str](), 0, 0
    async for fact in bus.read(run, follow=True):
        events += 1
        if isinstance(fact, Fact) and isinstance(fact.event, RolloutRecorded):
            workers.add(fact.envelope.producer.worker)
            rollouts += 1
        if isinstance(fact, Fact) and isinstance(fact.event, EvaluationCompleted):
            break
    found = Evaluated(time.perf_counter() - started, rollouts, len(workers), events)
    feedback = Clerk(run, "feedback", "bench", package_version(), time.time)
    await bus.append(run, [feedback.draft(genesis.id, 1, RunFailed("measured"), "bench", 0)])
    await bus.set_status(run, "failed")
    return found


async def attached(bus: Bus, run: str, count: int) -> None:
    """Until `count` processes wait for the run's work."""
    while True:
        held = await bus.held(run, ROLE)
        if held is not None and held.idle >= count:
            return
        await asyncio.sleep(LOOK_S)


def memory_mb(pid: int) -> float:
    """Memory of a process, what it shares with others counted in part (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))

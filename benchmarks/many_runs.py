"""Many runs on one server: appends into them beside the bare client, and what a run costs that does nothing.

Appends: one task a run, each its run's events in batches of ten, as a shard of eight rollouts makes them; the bare
client writes the same bytes in the same batches to streams of the same kind. Idle runs: one worker process serves all
of them; memory and processor time of it and of the server. A long log: the same process follows a run of many rollouts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats

from benchmarks.crew import attached, memory_mb
from benchmarks.log import Peer
from resia.events import Draft
from resia.runtime.bench import rollouts
from resia.runtime.bus import BATCH_LIMIT, Bus
from resia.runtime.config import ProcessConfig
from resia.runtime.server import Access
from resia.runtime.supervisor import Supervisor
from resia.runtime.worker import cancelled

BATCH = 10
SETTLE_S = 3.0
TICKS = os.sysconf("SC_CLK_TCK")
Say = Callable[[str], None]


async def appends(bus: Bus, access: Access, counts: Sequence[int], events: int, say: Say) -> list[dict[str, Any]]:
    """One row a number of runs that `events` are spread over: events a second of ours and of the bare client."""
    client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
    try:
        return [await _spread(bus, Peer(client), count, events, say) for count in counts]
    finally:
        await client.close()


async def _spread(bus: Bus, peer: Peer, count: int, events: int, say: Say) -> dict[str, Any]:
    say(f"appends to {count} runs")
    each = max(events // count, BATCH) // BATCH * BATCH

    async def publish(run: str, drafts: Sequence[Draft]) -> None:
        del run
        await peer.publish_batch(drafts, drafts[0].id)

    seconds = {}
    sides: dict[str, Callable[[str, Sequence[Draft]], Awaitable[object]]] = {"ours": bus.append, "client": publish}
    for side, write in sides.items():
        feeds = {run: list(rollouts(each, run))[2 : each + 2] for run in (f"{side}-{count}-{n}" for n in range(count))}
        for run in feeds:
            await bus.create_run(run, status="measured")  # nobody is to serve it
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for run, drafts in feeds.items():
                group.create_task(_write(run, drafts, write))
        seconds[side] = time.perf_counter() - started
    total = each * count
    rates = {f"{side}_events_per_s": round(total / spent) for side, spent in seconds.items()}
    return {"runs": count, **rates, "ratio": round(seconds["client"] / seconds["ours"], 3)}


async def _write(run: str, drafts: list[Draft], write: Callable[[str, Sequence[Draft]], Awaitable[object]]) -> None:
    for first in range(0, len(drafts) - BATCH + 1, BATCH):
        await write(run, drafts[first : first + BATCH])


async def idle(
    bus: Bus, access: Access, server: int, folder: Path, counts: Sequence[int], span_s: float, long: int, say: Say
) -> dict[str, Any]:
    """Rows by number of idle runs, and what one event of a long log adds; `server` is the server's process id."""
    supervisor = Supervisor(folder / "idle", 1, lambda died: say(f"{died.worker} died and was started again"))
    user, password = access.login("task")
    config = ProcessConfig(
        url=access.url, user=user, password=password, role="task", worker="idle-1", blobs=folder / "blobs"
    )
    keeping = asyncio.create_task(supervisor.keep(config))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(cancelled, [keeping])
        stack.push_async_callback(supervisor.stop)
        rows: list[dict[str, float]] = []
        for fewer, count in itertools.pairwise([0, *counts]):
            say(f"{count} idle runs")
            for number in range(fewer, count):
                await _begun(bus, f"idle-{number}", 2)
            rows.append(await _at_rest(supervisor, server, count, span_s))
        say(f"a log of {long} rollouts")
        before = await _at_rest(supervisor, server, counts[-1], span_s)
        await _begun(bus, "idle-long", long)
        after = await _at_rest(supervisor, server, counts[-1] + 1, span_s)
    kb = {
        f"{side}_kb": round((after[f"{side}_memory_mb"] - before[f"{side}_memory_mb"]) * 1024 / long, 3)
        for side in ("worker", "server")
    }
    return {"rows": rows, "slopes": _slopes(rows), "long_log_events": long, "an_event": kb}


async def _begun(bus: Bus, run: str, events: int) -> None:
    """An active run with some events, attached to by the worker."""
    await bus.create_run(run)
    drafts = list(rollouts(events, run))
    for first in range(0, len(drafts), BATCH_LIMIT):
        part = drafts[first : first + BATCH_LIMIT]
        await bus.append(run, part)
    await attached(bus, run, 1)


async def _at_rest(supervisor: Supervisor, server: int, count: int, span_s: float) -> dict[str, float]:
    """Memory, and processor time a second, of worker and server while nothing happens."""
    pid = supervisor.pid("idle-1")
    assert pid is not None  # it has attached to the runs
    await asyncio.sleep(min(SETTLE_S, span_s))
    pids = {"worker": pid, "server": server}
    before = {side: _cpu_s(pid) for side, pid in pids.items()}
    started = time.perf_counter()
    await asyncio.sleep(span_s)
    spent = time.perf_counter() - started
    return {
        "runs": count,
        **{f"{side}_memory_mb": round(memory_mb(pid), 1) for side, pid in pids.items()},
        **{f"{side}_cpu": round((_cpu_s(pid) - before[side]) / spent, 4) for side, pid in pids.items()},
        "server_files": len(os.listdir(f"/proc/{server}/fd")),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _slopes(rows: list[dict[str, float]]) -> dict[str, float]:
    """What one run adds, between the fewest runs and the most."""
    first, last = rows[0], rows[-1]
    more = last["runs"] - first["runs"]
    return {
        f"{name}_a_run": round((last[name] - first[name]) / more, 5) if more else 0.0
        for name in ("worker_memory_mb", "server_memory_mb", "worker_cpu", "server_cpu", "server_files")
    }

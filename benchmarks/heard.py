"""How soon a handler hears of an event, ours against the bare client's; and what fifty tails of the run change in that.

The tails are in a process of their own, each with a connection of its own, and read as `resia tail --follow` does.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from resia.events import Draft
from resia.events import subjects as names
from resia.runtime.bench import PACE, Latencies, on_time, paced, rollouts
from resia.runtime.bus import Bus, connect
from resia.runtime.server import READER, Access

ROOT = Path(__file__).parents[1]
LIVE_PACE = 100  # events a second: thirty times what a run on this kind of machine writes
SECONDS = 5


async def latencies(bus: Bus, client: Client, events: int) -> dict[str, float]:
    """`p50_ms` and `p99_ms` from append to handler at 1,000 events a second; the bare client's from publish to
    callback, on an ordered consumer, with no fold. In turns, medians of three."""
    count = min(events, SECONDS * PACE)
    rounds = []
    for number in range(3):
        ours, bare = f"paced-ours-{number}", f"paced-client-{number}"
        await bus.create_run(ours)
        await bus.create_run(bare)
        found = _milliseconds("", await paced(bus, ours, count))
        rounds.append(found | _milliseconds("client_", await _bare(client, bare, count)))
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


async def tails(bus: Bus, client: Client, access: Access, number: int, events: int) -> dict[str, float]:
    """The same at 100 events a second, with no tail and with `number`; `delivered` is what the tails saw together."""
    count = min(events, SECONDS * LIVE_PACE)
    await bus.create_run("live-alone")
    alone = await paced(bus, "live-alone", count, LIVE_PACE)
    await bus.create_run("live-tailed")
    last = len(list(rollouts(count)))
    task = {"url": access.url, "login": access.login(READER), "run": "live-tailed", "tails": number, "last": last}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.heard", stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    reading = asyncio.create_task(process.communicate(json.dumps(task).encode()))
    async with asyncio.timeout(60):
        await _attached(client, "live-tailed", number)
    tailed = await paced(bus, "live-tailed", count, LIVE_PACE)
    delivered = int((await reading)[0])
    return {
        "tails": number,
        "events": last,
        "pace_per_s": LIVE_PACE,
        "delivered": delivered,
        **_milliseconds("none_", alone),
        **_milliseconds("", tailed),
    }


async def _attached(client: Client, run: str, number: int) -> None:
    """Wait until `run` has `number` readers."""
    while (await client.jetstream().stream_info(names.stream(run))).state.consumer_count < number:  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # the server tells nobody of a consumer that comes


def _milliseconds(whose: str, found: Latencies) -> dict[str, float]:
    return {f"{whose}p50_ms": round(statistics.median(found.ms), 2), f"{whose}p99_ms": round(found.p99, 2)}


async def _bare(client: Client, run: str, count: int) -> Latencies:
    drafts = list(rollouts(count, run))
    stream = client.jetstream()
    called: dict[str, float] = {}
    heard: dict[str, float] = {}
    done = asyncio.Event()

    async def hear(message: Msg) -> None:
        heard[message.subject] = time.perf_counter()
        if len(heard) == len(drafts):
            done.set()

    async def publish(draft: Draft) -> None:
        called[draft.subject] = time.perf_counter()
        await stream.publish(draft.subject, draft.data)

    subscription = await stream.subscribe(
        names.all_events(run), stream=names.stream(run), ordered_consumer=True, cb=hear
    )
    await on_time([publish(draft) for draft in drafts], PACE)
    await done.wait()
    await subscription.unsubscribe()
    return Latencies(tuple((heard[subject] - start) * 1000 for subject, start in called.items()))


async def _tail(url: str, user: str, password: str, run: str, last: int) -> int:
    """Events that one tail saw, in order, up to number `last`."""
    bus = await connect(url, user, password)
    seen = 0
    async for fact in bus.read(run, follow=True):
        seen += 1
        if fact.sequence == last:
            break
    await bus.close()
    return seen


async def _all(task: dict[str, str | int | list[str]]) -> int:
    user, password = task["login"] if isinstance(task["login"], list) else ("", "")
    each = [
        _tail(str(task["url"]), user, password, str(task["run"]), int(str(task["last"])))
        for _ in range(int(str(task["tails"])))
    ]
    return sum(await asyncio.gather(*each))


if __name__ == "__main__":
    print(asyncio.run(_all(json.load(sys.stdin))))

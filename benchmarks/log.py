"""Durable appends a second through `Bus` against the bare NATS client, side by side on one server; reads; the fold.

Both write the same bytes to streams of the same kind, with fsync before every acknowledgement, in alternating blocks.
The bare client publishes one by one with `js.publish`, and in batches with nothing but the headers of an atomic batch:
no expectation, no fence, no retry. It reads with its ordered consumer and decodes nothing. A ratio is the median over
rounds of ours to the bare client's in the same round, so that load from elsewhere meets both.

    python -m benchmarks.log [--json] [--events N] [--rounds N] [--batch N] [--out PATH]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import nats
from nats.aio.client import Client

from benchmarks import machine
from resia.events import Draft, decode
from resia.events import subjects as names
from resia.replay.fold import fold
from resia.runtime.bench import rollouts
from resia.runtime.bus import BATCH_LIMIT, Bus, connect
from resia.runtime.server import Access, EmbeddedServer

OURS, PEER = "ours", "client"
SINGLES_SHARE = 10  # single appends are an order slower: take a tenth of them
PAIRS = {
    "single": ("append_single_per_s", "client_single_per_s"),
    "batch": ("append_batch_per_s", "client_batch_per_s"),
    "read": ("read_per_s", "client_read_per_s"),
}


class Peer(NamedTuple):
    """The bare client on its own stream."""

    client: Client

    async def publish(self, drafts: Sequence[Draft]) -> None:
        stream = self.client.jetstream()
        for draft in drafts:
            await stream.publish(draft.subject, draft.data)

    async def publish_batch(self, drafts: Sequence[Draft], name: str) -> None:
        for number, draft in enumerate(drafts[:-1], 1):
            await self.client.publish(draft.subject, draft.data, headers=_membership(name, number))
        last = {**_membership(name, len(drafts)), "Nats-Batch-Commit": "1"}
        reply = await self.client.request(drafts[-1].subject, drafts[-1].data, timeout=10, headers=last)
        answer = msgspec.json.decode(reply.data, type=dict)
        if answer.get("count") != len(drafts):
            raise RuntimeError(f"the bare client's batch of {len(drafts)} was answered with {answer}")

    async def read(self, count: int) -> None:
        stream = self.client.jetstream()
        subscription = await stream.subscribe(names.all_events(PEER), stream=names.stream(PEER), ordered_consumer=True)
        for _ in range(count):
            await subscription.next_msg(timeout=10)
        await subscription.unsubscribe()


def _membership(name: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("log", __doc__)
    parser.add_argument("--events", type=int, default=20_000, help="events that each side appends in batches")
    parser.add_argument("--rounds", type=int, default=5, help="blocks a side, taken in turn")
    parser.add_argument("--batch", type=int, default=500)
    args = parser.parse_args(argv)
    if not 2 <= args.batch <= BATCH_LIMIT:
        parser.error(f"--batch is {args.batch}: give 2 to {BATCH_LIMIT}")
    if args.rounds < 1 or args.events < args.rounds * max(args.batch, SINGLES_SHARE):
        parser.error(f"--events is {args.events}: give each of {args.rounds} rounds a batch of {args.batch} at least")
    machine.report(asyncio.run(measure(args.events, args.rounds, args.batch)), args, _table)
    return 0


async def measure(events: int, rounds: int, batch: int) -> dict[str, Any]:
    """Rates are medians over rounds. `fold_per_s` is decode and evolve of our events in memory."""
    found = machine.describe()
    with machine.folder(None) as folder:
        server = EmbeddedServer(folder)
        try:
            rates, found["nats_server"] = await _on_server(server.start(), events, rounds, batch)
        finally:
            server.stop()
    rates["fold_per_s"] = [_fold(events) for _ in range(rounds)]
    ratios = {
        name: [a / b for a, b in zip(rates[ours], rates[peer], strict=True)] for name, (ours, peer) in PAIRS.items()
    }
    payload = _drafts(OURS, 1)[0].data
    return {
        "benchmark": "log",
        "method": "medians over alternating blocks on one embedded server, fsync before every acknowledgement",
        **{name: round(statistics.median(values)) for name, values in rates.items()},
        "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "ratio_lowest": {name: round(min(values), 3) for name, values in ratios.items()},
        "events": events,
        "singles": rounds * (events // SINGLES_SHARE // rounds),
        "batch": batch,
        "rounds": rounds,
        "event_bytes": len(payload),
        "machine": {**found, "load_average_after": machine.load_average()},
    }


async def _on_server(access: Access, events: int, rounds: int, batch: int) -> tuple[dict[str, list[float]], str]:
    """Rates by name, one a round, and the server's version."""
    user, password = access.login("admin")
    bus = await connect(access.url, user, password)
    client = await nats.connect(access.url, user=user, password=password)
    try:
        await bus.create_registry()
        rates = await _paired(bus, Peer(client), events, rounds, batch)
        return rates, str(client.connected_server_version).strip("<>")
    finally:
        await client.close()
        await bus.close()


async def _paired(bus: Bus, peer: Peer, events: int, rounds: int, batch: int) -> dict[str, list[float]]:
    """Rates by name, one a round; who goes first alternates."""
    for run in (OURS, PEER):
        await bus.create_run(run)
    ours, bare = _Feed(OURS, events), _Feed(PEER, events)
    singles, batches = events // SINGLES_SHARE // rounds, events // batch // rounds
    rates: dict[str, list[float]] = {name: [] for pair in PAIRS.values() for name in pair}

    async def append_single() -> int:
        return await _each(ours.take(singles, 1), lambda drafts, _: bus.append(OURS, drafts))

    async def client_single() -> int:
        return await _each(bare.take(singles, 1), lambda drafts, _: peer.publish(drafts))

    async def append_batch() -> int:
        return await _each(ours.take(batches, batch), lambda drafts, _: bus.append(OURS, drafts))

    async def client_batch() -> int:
        return await _each(bare.take(batches, batch), peer.publish_batch)

    async def read() -> int:
        return len([None async for _ in bus.read(OURS)])

    async def client_read() -> int:
        await peer.read(bare.taken)
        return bare.taken

    pairs = [(append_single, client_single), (append_batch, client_batch), (read, client_read)]
    for number in range(rounds):
        for action_pair, label_pair in zip(pairs, PAIRS.values(), strict=True):
            both = list(zip(action_pair, label_pair, strict=True))
            for action, label in both if number % 2 == 0 else reversed(both):
                started = time.perf_counter()
                count = await action()
                rates[label].append(count / (time.perf_counter() - started))
    return rates


class _Feed:
    """Drafts of one side, each handed out once; made before the clock runs."""

    def __init__(self, run: str, events: int) -> None:
        self._drafts = _drafts(run, events + events // SINGLES_SHARE)
        self.taken = 0

    def take(self, count: int, size: int) -> list[list[Draft]]:
        """`count` groups of `size`."""
        first, self.taken = self.taken, self.taken + count * size
        return [self._drafts[n : n + size] for n in range(first, self.taken, size)]


async def _each(groups: list[list[Draft]], write: Callable[[Sequence[Draft], str], Awaitable[object]]) -> int:
    """Write each group; the number of events written."""
    for group in groups:
        await write(group, group[0].id)
    return sum(map(len, groups))


def _drafts(run: str, count: int) -> list[Draft]:
    """Recorded rollouts, the commonest event of a run."""
    return list(rollouts(count, run))[2:]


def _fold(events: int) -> float:
    drafts = list(rollouts(events, OURS))
    started = time.perf_counter()
    fold(decode(n, draft.subject, draft.data) for n, draft in enumerate(drafts, 1))
    return len(drafts) / (time.perf_counter() - started)


def _table(result: dict[str, Any]) -> str:
    rows = [
        f"{name:<8}{result[ours]:>10,} /s  bare client {result[peer]:>10,} /s  ratio {result['ratio'][name]}"
        for name, (ours, peer) in PAIRS.items()
    ]
    return "\n".join([*rows, f"{'fold':<8}{result['fold_per_s']:>10,} /s"])


if __name__ == "__main__":
    sys.exit(main())

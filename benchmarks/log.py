"""The log against the bare NATS client on one server: appends, reads, latency, a long log rebuilt, tails; the fold.

Both write the same bytes to streams of the same kind, with fsync before every acknowledgement, in alternating blocks.
The bare client publishes one by one with `js.publish`, and in batches with nothing but the headers of an atomic batch:
no expectation, no fence, no retry. It reads with its ordered consumer and decodes nothing. A ratio is the median over
rounds of ours to the bare client's in the same round, so that load from elsewhere meets both.

The long log is rebuilt by ours, read, decoded and folded, and its first events are read by the bare client. The fold
has no peer; its floor is msgspec's decoding of the same bytes into plain objects.

    python -m benchmarks.log [--json] [--events N] [--rounds N] [--batch N] [--long N] [--tails N] [--out PATH]
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

from benchmarks import heard, machine
from resia.events import Draft
from resia.events import subjects as names
from resia.runtime.bench import LONG, folds, replayed, rollouts
from resia.runtime.bus import BATCH_LIMIT, Bus, connect
from resia.runtime.server import Access, EmbeddedServer

OURS, PEER = "ours", "client"
SINGLES_SHARE = 10  # single appends are an order slower: take a tenth of them
PAIRS = {
    "single": ("append_single_per_s", "client_single_per_s"),
    "batch": ("append_batch_per_s", "client_batch_per_s"),
    "read": ("read_per_s", "client_read_per_s"),
}
LONG_READ = 100_000  # events of the long log that the bare client reads: it would take half a minute for a million


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

    async def read(self, count: int, run: str = PEER) -> None:
        stream = self.client.jetstream()
        subscription = await stream.subscribe(names.all_events(run), stream=names.stream(run), ordered_consumer=True)
        for _ in range(count):
            await subscription.next_msg(timeout=10)
        await subscription.unsubscribe()


def _membership(name: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("log", __doc__)
    parser.add_argument("--events", type=int, default=20_000, help="events that each side appends in batches")
    parser.add_argument("--rounds", type=int, default=5, help="blocks a side, taken in turn")
    parser.add_argument("--batch", type=int, default=BATCH_LIMIT)
    parser.add_argument("--long", type=int, default=1_000_000, help="rollouts in the log that is rebuilt")
    parser.add_argument("--tails", type=int, default=50, help="readers of one live run at once")
    args = parser.parse_args(argv)
    if not 2 <= args.batch <= BATCH_LIMIT:
        parser.error(f"--batch is {args.batch}: give 2 to {BATCH_LIMIT}")
    if args.rounds < 1 or args.events < args.rounds * max(args.batch, SINGLES_SHARE):
        parser.error(f"--events is {args.events}: give each of {args.rounds} rounds a batch of {args.batch} at least")
    machine.report(asyncio.run(measure(args.events, args.rounds, args.batch, args.long, args.tails)), args, _table)
    return 0


async def measure(events: int, rounds: int, batch: int, long: int, tails: int) -> dict[str, Any]:
    """Rates are medians over rounds, those of the fold and of the long log the best of three."""
    found = machine.describe()
    result: dict[str, Any] = {}
    with machine.folder(None) as folder:
        server = EmbeddedServer(folder)
        try:
            rates = await _on_server(server.start(), events, rounds, batch, long, tails, result)
        finally:
            server.stop()
    result |= {name: round(rate) for name, rate in folds(events).items()}
    result["plain_decode_per_s"] = round(_plain_decode(events))
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
        **{name: value for name, value in result.items() if name != "nats_server"},
        "events": events,
        "singles": rounds * (events // SINGLES_SHARE // rounds),
        "batch": batch,
        "rounds": rounds,
        "event_bytes": len(payload),
        "machine": {**found, "nats_server": result["nats_server"], "load_average_after": machine.load_average()},
    }


async def _on_server(
    access: Access, events: int, rounds: int, batch: int, long: int, tails: int, result: dict[str, Any]
) -> dict[str, list[float]]:
    """Rates by name, one a round; everything else goes into `result`."""
    user, password = access.login("admin")
    bus = await connect(access.url, user, password)
    client = await nats.connect(access.url, user=user, password=password)
    try:
        await bus.create_registry()
        result["nats_server"] = str(client.connected_server_version).strip("<>")
        result |= await heard.latencies(bus, client, events)  # while the disk is idle
        rates = await _paired(bus, Peer(client), events, rounds, batch)
        result["tails"] = await heard.tails(bus, client, access, tails, events)
        result |= await _long(bus, Peer(client), long)
        return rates
    finally:
        await client.close()
        await bus.close()


async def _long(bus: Bus, peer: Peer, count: int) -> dict[str, float]:
    found = await replayed(bus, count)
    started = time.perf_counter()
    taken = min(LONG_READ, count)
    await peer.read(taken, LONG)
    client = taken / (time.perf_counter() - started)
    rates = {"replay_per_s": round(found["replay_events"] / found["replay_s"]), "client_long_read_per_s": round(client)}
    return {name: round(value, 2) for name, value in found.items()} | rates


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


def _plain_decode(events: int) -> float:
    """The floor of the fold: the same bytes as dictionaries and lists, a second; the best of three."""
    messages = [draft.data for draft in rollouts(events, OURS)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for message in messages:
            msgspec.json.decode(message)
        seconds.append(time.perf_counter() - started)
    return len(messages) / min(seconds)


def _table(result: dict[str, Any]) -> str:
    rows = [
        f"{name:<8}{result[ours]:>10,} /s  bare client {result[peer]:>10,} /s  ratio {result['ratio'][name]}"
        for name, (ours, peer) in PAIRS.items()
    ]
    rows += [
        f"latency  p99 {result['p99_ms']} ms  bare client {result['client_p99_ms']} ms",
        f"rebuild {result['replay_per_s']:>10,} /s  bare client reads {result['client_long_read_per_s']:,} /s",
        f"fold    {result['fold_per_s']:>10,} /s  with decoding {result['decode_fold_per_s']:,} /s"
        f"  floor {result['plain_decode_per_s']:,} /s",
        "{tails} tails: p99 {p99_ms} ms, without them {none_p99_ms} ms".format_map(result["tails"]),
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

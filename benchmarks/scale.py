"""What more workers and more runs cost on one machine: the slopes that docs/scale.md reckons with.

Rollouts a second of one evaluation with 1, 2, 4 and 8 task workers on the tiny model, beside the same engine called in
one process without a log. Events a second with 1 to 100 runs written at once, beside the bare client. Memory and
processor time of a worker and of the server for each run that rests, and for each event of a long log. Blobs stored a
second, beside plain files that are synced.

    python -m benchmarks.scale [--json] [--workers 1,2,4,8] [--runs 1,10,100] [--events N] [--items N] [--group N]
                               [--shard N] [--rounds N] [--span SECONDS] [--long N] [--out PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import crew, machine, many_runs
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import connect
from resia.runtime.server import EmbeddedServer

BLOB_BYTES, BLOBS = 8 << 10, 200  # a trajectory of a short rollout


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("scale", __doc__)
    parser.add_argument("--workers", type=_numbers, default=[1, 2, 4, 8], help="task workers, from few to many")
    parser.add_argument("--runs", type=_numbers, default=[1, 10, 100], help="runs at once, from few to many")
    parser.add_argument("--events", type=int, default=5_000, help="events that are spread over the runs")
    parser.add_argument("--items", type=int, default=8, help="search items of the evaluation")
    parser.add_argument("--group", type=int, default=8, help="rollouts a search item")
    parser.add_argument("--shard", type=int, default=6, help="rollouts a shard")
    parser.add_argument("--rounds", type=int, default=1, help="evaluations at each number of workers")
    parser.add_argument("--span", type=float, default=8.0, help="seconds that idle runs are watched")
    parser.add_argument("--long", type=int, default=20_000, help="rollouts in the long log")
    args = parser.parse_args(argv)
    if min(args.events, args.items, args.group, args.shard, args.rounds, args.span, args.long) <= 0:
        parser.error("give each number as one above 0")
    machine.report(asyncio.run(measure(args)), args, _table)
    return 0


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if not found or min(found) < 1 or found != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers from few to many, such as 1,2,4")
    return found


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    from resia.runtime.engines.tiny import build_tiny_model

    found = machine.describe()
    with machine.folder(None) as folder:
        model = build_tiny_model(folder / "tiny-random", context=4096)
        server = EmbeddedServer(folder / "store")
        access = server.start()
        bus = await connect(access.url, *access.login("admin"))
        try:
            await bus.create_registry()
            size = crew.Size(args.items, args.group, args.shard, args.rounds)
            workers = await crew.rates(bus, access, folder, model, args.workers, size, _say)
            appends = await many_runs.appends(bus, access, args.runs, args.events, _say)
            assert server.pid is not None
            idle = await many_runs.idle(bus, access, server.pid, folder, args.runs, args.span, args.long, _say)
            stored = [path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file()]
            blobs = await asyncio.to_thread(_blobs, folder)
        finally:
            await bus.close()
            server.stop()
    return {
        "benchmark": "scale",
        "method": "whole processes on one embedded server; floors taken in the same minute on the same machine",
        "model": "tiny-random",
        "rollouts_per_s": {str(row["workers"]): row["rollouts_per_s"] for row in workers},
        "rollouts": {str(row["workers"]): row for row in workers},
        "appends": {str(row["runs"]): row for row in appends},
        "idle": idle,
        "blobs": {**blobs, "bytes_per_rollout": round(sum(stored) / max(len(stored), 1))},
        "machine": {**found, "load_average_after": machine.load_average()},
    }


def _blobs(folder: Path) -> dict[str, float]:
    """Blobs a second, each durable when it is put, beside files that are written and synced under their last name."""
    bodies = [os.urandom(BLOB_BYTES) for _ in range(BLOBS)]
    store, plain = DirectoryBlobs(folder / "put"), folder / "plain"
    plain.mkdir()
    started = time.perf_counter()
    for body in bodies:
        store.put(body)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    for number, body in enumerate(bodies):
        with (plain / str(number)).open("wb") as sink:
            sink.write(body)
            sink.flush()
            os.fsync(sink.fileno())
    floor = time.perf_counter() - started
    return {
        "puts_per_s": round(BLOBS / ours),
        "plain_files_per_s": round(BLOBS / floor),
        "ratio": round(floor / ours, 3),
        "blob_bytes": BLOB_BYTES,
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _table(result: dict[str, Any]) -> str:
    rows = [
        f"{row['workers']} task workers  {row['rollouts_per_s']} rollouts/s, {row['ratio']} of one process without a"
        f" log ({row['floor_rollouts_per_s']}/s), {row['worker_memory_mb']} MB each"
        for row in result["rollouts"].values()
    ]
    rows += [
        f"{row['runs']} runs  {row['ours_events_per_s']:,} events/s, {row['ratio']} of the bare client"
        for row in result["appends"].values()
    ]
    rows += [
        f"{row['runs']} idle runs  worker {row['worker_memory_mb']} MB {row['worker_cpu']:.1%} of a core,"
        f" server {row['server_memory_mb']} MB {row['server_cpu']:.1%}"
        for row in result["idle"]["rows"]
    ]
    rows += [f"an event of a long log  {result['idle']['an_event']}"]
    rows += ["blobs  {puts_per_s} puts/s, {ratio} of plain files".format_map(result["blobs"])]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

"""Share of an iteration's wall time that is neither sampling, scoring, training nor editing: what bus and log cost.

Read from a finished run: its events and its workers' logs. An iteration lasts from one candidate's
`evaluation-requested` to the next one's, the last to its decision. A worker is at work on a request from the moment
the request was handed to it (the time of its `handled` line less that line's `ms`) until it drafted the last outcome
(`recorded_at`). What no worker's work covers is outside: every append and acknowledgement, delivery, folding, the
rules themselves and the gate's statistics, waiting for a worker. Two costs hide inside work and are added from the
same run: appends before a request's last one, each at the median time from a last outcome to its `handled` line
(append and acknowledgement), and for each request the mean time of handlings with nothing to do (wait for the fold,
rule, acknowledgement). So `share` errs upwards, up to `ms` being whole milliseconds. Iteration 0 is shown and not
counted: loading the model makes it long.

Without --store it makes the runs: a tiny random model on small synthetic data, whose iterations last a fraction of a
second, and, where model and counts are pulled, SmolLM2 on the denoising domain, settings as they come, mode H.

    python -m benchmarks.overhead [--json] [--store DIR --run NAME] [--models tiny,smollm2-135m-instruct]
                                  [--iterations N] [--out PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, startup
from resia.events import DecisionMade, EvaluationRequested, Fact, RunRequested
from resia.events.errors import UsageError
from resia.runtime.assets import locate
from resia.runtime.reading import load
from resia.runtime.store import Store

COUNTS = "celltypist-sample"
SAME_BATCH_S = 0.0005  # drafts of one batch are made in a row; between batches lies an append at least
_OUTCOME = re.compile(r": (\d+) decided, (\d+) performed$")


class Handled(NamedTuple):
    """One line of a worker's log; times in seconds since the epoch."""

    sequence: int
    role: str
    start: float
    end: float
    decided: int
    performed: int


class Span(NamedTuple):
    start: float
    end: float


class Work(NamedTuple):
    """A request being performed: when, and how many appends there were before the last."""

    span: Span
    inner_appends: int
    closing_s: float  # from the last outcome to the handled line


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("overhead", __doc__)
    startup.add_run_options(parser)
    parser.add_argument("--run", help="a finished run in --store, instead of making runs")
    args = parser.parse_args(argv)
    if args.run and not args.store:
        parser.error(f"--run is {args.run}: name its store with --store")
    if args.iterations < 1:
        parser.error(f"--iterations is {args.iterations}: give at least 1")
    machine.report(measure(args), args, _table)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    found = machine.describe()
    if args.run:
        runs = [analyse(Store(args.store), args.run)]
    else:
        with machine.folder(args.store) as folder:
            runs = [analyse(*_made(name, folder, args.iterations)) for name in _possible(args.models)]
    return {
        "benchmark": "overhead",
        "method": "share of wall time outside the performing of requests, from events and workers' logs of whole runs",
        "runs": {run.pop("model"): run for run in runs},
        "machine": {**found, "load_average_after": machine.load_average()},
    }


def _possible(models: list[str] | None) -> list[str]:
    return models or [name for name in startup.here(None) if name == startup.TINY or locate(COUNTS)]


def _made(name: str, folder: Path, iterations: int) -> tuple[Store, str]:
    """A run made now: small for the tiny model, as a user would make it for another."""
    settings = startup.SETTINGS if name == startup.TINY else {"loop.mode": "H"}
    made = startup.short_run(name, folder, 0, iterations, settings)
    return made.store, made.run


def analyse(store: Store, run: str) -> dict[str, Any]:
    """The measure for one finished run; UsageError when it has no iteration after the first or no worker logs."""
    facts = [fact for fact in asyncio.run(load(store, run)).facts if isinstance(fact, Fact)]
    handled = [line for path in sorted((store.workers / run).glob("*.log")) for line in _handled(path)]
    request = facts[0].event
    windows = _windows(facts)
    if not handled or len(windows) < 2 or not isinstance(request, RunRequested):
        raise UsageError(f"run '{run}' has {len(windows)} iterations and {len(handled)} handled events: it needs more")
    work = _work(facts, handled)
    append_s = statistics.median(piece.closing_s for piece in work)
    idle = [line.end - line.start for line in handled if not line.decided and not line.performed]
    wait_s = statistics.fmean(idle) if idle else 0.0
    rows = [_row(window, work, append_s, wait_s) for window in windows]
    counted = rows[1:]
    settings = request.settings
    return {
        "model": Path(settings.engine.model).name,
        "domain": settings.domain + (", synthetic counts" if settings.domain_options.get("synthetic") else ""),
        "mode": settings.loop.mode,
        "share": round(sum(r["bus_and_log_s"] for r in counted) / sum(r["wall_s"] for r in counted), 4),
        "share_highest": max(row["share"] for row in counted),
        "append_ms": round(1000 * append_s, 2),
        "wait_ms": round(1000 * wait_s, 2),
        "events": len(facts),
        "iterations": rows,
    }


def _handled(path: Path) -> Iterable[Handled]:
    """Handlings that a worker wrote down; other lines are passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
        counts = _OUTCOME.search(str(entry.get("outcome", "")))
        if entry.get("event") == "handled" and counts:
            end = datetime.fromisoformat(entry["timestamp"]).timestamp()
            yield Handled(
                entry["sequence"], entry["role"], end - entry["ms"] / 1000, end, int(counts[1]), int(counts[2])
            )


def _windows(facts: list[Fact]) -> list[Span]:
    """One span an iteration, from 0."""
    starts = [
        fact.envelope.recorded_at
        for fact in facts
        if isinstance(fact.event, EvaluationRequested) and fact.event.purpose == "candidate"
    ]
    decisions = [fact.envelope.recorded_at for fact in facts if isinstance(fact.event, DecisionMade)]
    if not starts or not decisions:
        return []
    return [Span(a, b) for a, b in pairwise([*starts, max(decisions[-1], starts[-1])])]


def _work(facts: list[Fact], handled: list[Handled]) -> list[Work]:
    """Every request that was performed."""
    drafted: dict[tuple[str, str | None], list[float]] = {}
    for fact in facts:
        drafted.setdefault((fact.envelope.producer.role, fact.envelope.cause), []).append(fact.envelope.recorded_at)
    ids = {fact.sequence: fact.envelope.id for fact in facts}
    work = []
    for line in handled:
        outcomes = drafted.get((line.role, ids.get(line.sequence)))
        if line.performed and outcomes:
            inner = sum(b - a > SAME_BATCH_S for a, b in pairwise(outcomes))
            work.append(Work(Span(line.start, max(line.start, outcomes[-1])), inner, line.end - outcomes[-1]))
    return work


def _row(window: Span, work: list[Work], append_s: float, wait_s: float) -> dict[str, float]:
    """One iteration: its wall time, what no work covers, what hides inside work, and their share of the wall time."""
    inside = [piece for piece in work if window.start <= piece.span.start < window.end]
    wall = window.end - window.start
    outside = wall - _covered(window, [piece.span for piece in work])
    hidden = sum(piece.inner_appends * append_s + wait_s for piece in inside)
    return {
        "wall_s": round(wall, 3),
        "outside_s": round(outside, 4),
        "hidden_s": round(hidden, 4),
        "bus_and_log_s": round(outside + hidden, 4),
        "share": round((outside + hidden) / wall, 4),
    }


def _covered(window: Span, spans: Iterable[Span]) -> float:
    """Length of the union of `spans` within `window`."""
    covered, reached = 0.0, window.start
    for start, end in sorted(spans):
        first, last = max(start, reached), min(end, window.end)
        if last > first:
            covered += last - first
            reached = last
    return covered


def _table(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{model}, {run['domain']}, mode {run['mode']}: {run['share']:.2%} of {len(run['iterations']) - 1} iterations,"
        f" {run['share_highest']:.2%} of the highest"
        for model, run in result["runs"].items()
    )


if __name__ == "__main__":
    sys.exit(main())

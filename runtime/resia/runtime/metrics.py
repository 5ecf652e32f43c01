"""Prometheus metrics of one process, and the port that they are fetched from. Imported only where they are asked for.

Labels are bounded: event types of the core (all others count as `custom`), outcomes, failure classes. No run's name is
one: a server that keeps every run for ever would hold one series for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.process_collector import ProcessCollector

from resia.agents.ports import Completion, Engine, Json, Ran, Sampling, Tool
from resia.events import (
    Blob,
    Blobs,
    Draft,
    Fact,
    Failure,
    Logged,
    Manifest,
    Message,
    RolloutFailed,
    RolloutRecorded,
    ShardSampled,
    Skipped,
    StepTrained,
)
from resia.events.catalogue import NAMES
from resia.events.errors import BoundaryError, SandboxError, UsageError

from .observing import Observer
from .resources import Resources
from .sandbox import ProcessSandbox

APPEND_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
LOOPBACK = "127.0.0.1"
FAILURES = frozenset(get_args(Failure))


class Metrics(Observer):
    """What one process did since it began, in a registry of its own."""

    def __init__(self, role: str, worker: str, package: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU and descriptors, on Linux
        Info("resia_worker", "Who this is.", registry=self.registry).info(
            {"role": role, "worker": worker, "package": package}
        )
        self._events = self._counter("resia_events", "Events, by what was done with them.", "op", "type")
        self._append = self._histogram("resia_append_seconds", "Until a batch was on disk.", APPEND_S, "outcome")
        self._in_hand = Gauge("resia_work_in_hand", "Events being handled.", registry=self.registry)
        self._handled = self._counter("resia_handled", "Events handled.", "outcome")
        self._redelivered = self._counter("resia_redeliveries", "Events that came again.")
        self._lag = Gauge(
            "resia_fold_lag", "Events in the log and not folded yet, of all runs.", registry=self.registry
        )
        self._lag.set_function(lambda: sum(max(0, end - self._folded.get(run, 0)) for run, end in self._ends.items()))
        self._rollouts = self._counter("resia_rollouts", "Rollouts by their failure class.", "failure")
        self._tokens = self._counter("resia_tokens", "Tokens of rollouts, in and out.", "direction")
        self._steps = self._counter("resia_training_steps", "Optimiser steps.")
        self._failures = self._counter("resia_failures", "Requests that failed, by the event that says so.", "type")
        self._shards = self._histogram("resia_shard_seconds", "Of a shard of rollouts, as its event says.", LONG_S)
        self._engine = self._histogram("resia_engine_seconds", "Of a call of the engine.", LONG_S, "outcome")
        self._sandbox = self._counter("resia_sandbox_runs", "Runs of generated code.", "outcome")
        self._blobs = self._counter("resia_blob_bytes", "Bytes of blobs.", "op")
        self._ends: dict[str, int] = {}
        self._folded: dict[str, int] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    # -- what the connection tells ---------------------------------------------------------------------------------

    def read(self, run: str, fact: Logged) -> None:
        self._events.labels("read", _kind(fact)).inc()
        self._ends[run] = max(fact.sequence, self._ends.get(run, 0))

    def folded(self, run: str, sequence: int) -> None:
        self._folded[run] = sequence

    def left(self, run: str) -> None:
        self._ends.pop(run, None)
        self._folded.pop(run, None)

    def end_seen(self, run: str, last: int) -> None:
        if run in self._ends:  # followed, and not left
            self._ends[run] = max(last, self._ends.get(run, 0))

    def appended(self, drafts: Sequence[Draft], already: bool, seconds: float) -> None:
        self._append.labels("already" if already else "appended").observe(seconds)
        if already:
            return
        for draft in drafts:
            kind = _type(draft.event)
            self._events.labels("appended", kind).inc()
            if kind.endswith("-failed"):
                self._failures.labels(kind).inc()
            self._count(draft.event)

    def refused(self, moved: bool, seconds: float) -> None:
        self._append.labels("conflict" if moved else "failed").observe(seconds)

    def taken(self, deliveries: int) -> None:
        self._in_hand.inc()
        if deliveries > 1:
            self._redelivered.inc()

    def handled(self, outcome: str) -> None:
        self._in_hand.dec()
        self._handled.labels(outcome).inc()

    def _count(self, event: msgspec.Struct) -> None:
        match event:
            case RolloutRecorded():
                known = event.failure is None or event.failure in FAILURES
                self._rollouts.labels((event.failure or "none") if known else "other").inc()
                self._tokens.labels("in").inc(event.prompt_tokens)
                self._tokens.labels("out").inc(event.completion_tokens)
            case RolloutFailed():
                self._rollouts.labels("infrastructure").inc()
            case ShardSampled():
                self._shards.observe(event.seconds)
            case StepTrained():
                self._steps.inc()
            case _:
                pass

    # -- what the resources tell -----------------------------------------------------------------------------------

    @contextmanager
    def engine_call(self) -> Iterator[None]:
        """Time one call of the engine."""
        started, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._engine.labels(outcome).observe(time.perf_counter() - started)

    @contextmanager
    def sandbox_run(self) -> Iterator[None]:
        """Count one run of generated code: `done`, how the code failed, or `broken`: the sandbox did."""
        outcome = "broken"
        try:
            yield
            outcome = "done"
        except SandboxError as cause:
            outcome = cause.failure if cause.failure in FAILURES else "other"
            raise
        except BoundaryError:
            raise
        finally:
            self._sandbox.labels(outcome).inc()

    def blob(self, op: str, size: int) -> None:
        """`size` bytes were stored (`put`) or read (`get`)."""
        self._blobs.labels(op).inc(size)


def _kind(fact: Logged) -> str:
    if isinstance(fact, Skipped):
        return "skipped"
    return fact.envelope.type if isinstance(fact, Fact) else "custom"


def _type(event: msgspec.Struct) -> str:
    known: Mapping[type[Any], str] = NAMES
    return known.get(type(event), "custom")


class CountedBlobs:
    """Implements events.Blobs over others, whose bytes are counted."""

    def __init__(self, blobs: Blobs, metrics: Metrics) -> None:
        self._blobs, self._metrics = blobs, metrics

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """See events.Blobs."""
        blob = self._blobs.put(data, media)
        self._metrics.blob("put", len(data))
        return blob

    def get(self, blob: Blob) -> bytes:
        """See events.Blobs."""
        data = self._blobs.get(blob)
        self._metrics.blob("get", len(data))
        return data

    def path(self, blob: Blob) -> Path:
        """See events.Blobs."""
        return self._blobs.path(blob)


class _TimedEngine:
    """Implements ports.Engine over another."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics

    @property
    def manifest(self) -> Manifest:
        return self._engine.manifest

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See ports.Engine."""
        with self._metrics.engine_call():
            return self._engine.generate(prompts, sampling, seeds, adapter, on_tokens)


class _CountedSandbox(ProcessSandbox):
    """A sandbox whose runs are counted."""

    metrics: Metrics

    def run(self, source: str, entry: str, args: Sequence[Json], tools: Mapping[str, Tool] | None = None) -> Ran:
        """See ProcessSandbox."""
        with self.metrics.sandbox_run():
            return super().run(source, entry, args, tools)


class CountedResources(Resources):
    """Resources whose engine, sandbox and blobs are counted."""

    def __init__(self, metrics: Metrics, blobs: Blobs, *rest: Any) -> None:
        super().__init__(CountedBlobs(blobs, metrics), *rest)
        self._metrics = metrics

    def _load_engine(self, *asked: Any) -> Engine:
        return _TimedEngine(super()._load_engine(*asked), self._metrics)

    def _start_sandbox(self) -> ProcessSandbox:
        from .sandbox import SandboxLimits

        sandbox = _CountedSandbox(SandboxLimits(), unsafe_local=self._unsafe)
        sandbox.metrics = self._metrics
        return sandbox


def serve_metrics(metrics: Metrics, address: str) -> tuple[str, Callable[[], None]]:
    """Answer GET /metrics at `address`, PORT (of the loopback; 0 takes a free one) or HOST:PORT; the URL, and how to
    stop. UsageError for an address that is none, or taken."""
    host, _, number = address.rpartition(":")
    if not number.isdigit() or int(number) > 65535:
        raise UsageError(f"--metrics takes PORT or HOST:PORT such as 9464, not '{address[:80]}'")
    try:
        server, thread = start_http_server(int(number), addr=host or LOOPBACK, registry=metrics.registry)
    except OSError as cause:
        raise UsageError(
            f"metrics cannot be served on {address} ({cause.strerror}): name another port with --metrics"
        ) from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://{host or LOOPBACK}:{server.server_port}/metrics", stop

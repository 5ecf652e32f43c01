"""Whether and how a process is watched from outside: metrics where they were asked for, spans where the environment
names a collector. Without either nothing is imported, and the work's own connection and resources are used as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from resia.events import Blobs
from resia.events.errors import UsageError

from .bus import Bus
from .resources import Resources, package_version

if TYPE_CHECKING:
    from resia.trainers.world import World

    from .metrics import Metrics
    from .observing import Observer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_MISSING = "is not installed: pip install 'resia[ops]'"
_log = structlog.get_logger()


class Watching(NamedTuple):
    """Who observes a process; nobody where both are empty. `url` is where its metrics are."""

    observers: tuple[Observer, ...] = ()
    metrics: Metrics | None = None
    url: str = ""

    def bus(self, bus: Bus) -> Bus:
        """`bus`, observed where anybody does."""
        if not self.observers:
            return bus
        from .observing import ObservedBus

        return ObservedBus(bus, self.observers)

    def resources(self, blobs: Blobs, cache: Path | None, unsafe: bool, world: World | None = None) -> Resources:
        """A process's resources, counted where anybody counts."""
        if self.metrics is None:
            return Resources(blobs, cache, unsafe, world)
        from .metrics import CountedResources

        return CountedResources(self.metrics, blobs, cache, unsafe, world)


@contextmanager
def watching(role: str, worker: str, address: str | None, strict: bool = True) -> Iterator[Watching]:
    """Watched for as long as this lasts. `address`: where metrics are served, None for none.

    Metrics that cannot be served are a UsageError where `strict`, for a person who asked for them; a worker that is
    started again says so in its log and works on.
    """
    with ExitStack() as stack:
        observers: list[Observer] = []
        metrics, url = None, ""
        if address is not None:
            try:
                metrics, url = _metrics(stack, role, worker, address)
                observers.append(metrics)
                _log.info("metrics", url=url)
            except UsageError as cause:
                if strict:
                    raise
                _log.warning("no metrics", error=str(cause))
        if collector_named(os.environ):
            _trace(stack, role, worker, observers)
        yield Watching(tuple(observers), metrics, url)


def collector_named(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be sent, as OpenTelemetry's standard variables say it."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not off and not none and any(environment.get(name) for name in _ENDPOINTS)


def _metrics(stack: ExitStack, role: str, worker: str, address: str) -> tuple[Metrics, str]:
    try:
        from .metrics import Metrics, serve_metrics
    except ModuleNotFoundError as cause:
        raise UsageError(f"--metrics needs {cause.name}, which {_MISSING}") from None
    made = Metrics(role, worker, package_version())
    url, stop = serve_metrics(made, address)
    stack.callback(stop)
    return made, url


def _trace(stack: ExitStack, role: str, worker: str, observers: list[Observer]) -> None:
    """The variables may be meant for other programs: a library that is missing is no error."""
    try:
        from .traces import Traces
    except ModuleNotFoundError as cause:
        _log.warning("no spans are sent", error=f"{cause.name} {_MISSING}")
        return
    traces = Traces(role, worker, package_version())
    stack.callback(traces.close)
    observers.append(traces)

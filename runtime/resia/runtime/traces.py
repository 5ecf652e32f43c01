"""Spans sent to an OpenTelemetry collector as they are finished. Imported only where the environment names one.

Each process sends the spans of the events that it wrote itself, once it reads them back: what is sent is what
`resia trace` makes of the log later. The exporter reads its own settings, the standard OTEL_* variables.
"""

from __future__ import annotations

import threading
import time

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from resia.events import Logged, Skipped
from resia.replay.spans import Span, Weaver

from .observing import Observer

CLOSE_S = 3.0
SERVICE, _UNNAMED = "resia", "unknown_service"
_log = structlog.get_logger()


class Traces(Observer):
    """Sends the spans of what `worker` wrote since `began` (seconds since the epoch)."""

    def __init__(
        self, role: str, worker: str, package: str, processor: SpanProcessor | None = None, began: float | None = None
    ) -> None:
        named = {"service.instance.id": worker, "service.version": package, "resia.role": role}
        self._resource = _called(Resource.create(named))
        self._scope = InstrumentationScope(SERVICE, package)
        self._processor = processor or BatchSpanProcessor(OTLPSpanExporter())
        self._worker, self._began = worker, time.time() if began is None else began
        self._weavers: dict[str, Weaver] = {}

    def read(self, run: str, fact: Logged) -> None:
        finished = self._weavers.setdefault(run, Weaver(run)).weave(fact)
        if isinstance(fact, Skipped) or fact.envelope.recorded_at < self._began:
            return  # an earlier process of this name has sent it
        for span in finished:
            if span.worker == self._worker:
                self._processor.on_end(self._readable(span))

    def left(self, run: str) -> None:
        self._weavers.pop(run, None)

    def close(self) -> None:
        """Send what waits. A collector that does not answer is not waited for long: the work is done."""
        sending = threading.Thread(target=self._processor.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_S)
        if sending.is_alive():
            _log.warning("the last spans were not sent", fix="resia trace makes them of the log")

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace, span.id),
            parent=_context(span.trace, span.parent) if span.parent else None,
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(*span.link))] if span.link else (),
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _called(resource: Resource) -> Resource:
    """With this service's name, where the environment gives it none."""
    given = str(resource.attributes.get("service.name", _UNNAMED))
    return resource.merge(Resource({"service.name": SERVICE})) if given.startswith(_UNNAMED) else resource


def _context(trace: str, span: str) -> SpanContext:
    return SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

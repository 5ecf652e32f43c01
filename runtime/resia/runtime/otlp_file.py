"""Spans as OTLP JSON, a request of the collector's `/v1/traces` a line, as its file receiver reads it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any

import msgspec

from resia.replay.spans import Plain, Span

from .resources import package_version

SPANS_A_LINE = 1000
_INTERNAL, _UNSET, _ERROR = 1, 0, 2


def lines(spans: Iterable[Span]) -> Iterator[bytes]:
    """Up to `SPANS_A_LINE` spans a line."""
    waiting = iter(spans)
    while chunk := list(islice(waiting, SPANS_A_LINE)):
        yield msgspec.json.encode({"resourceSpans": [*_by_worker(chunk)]}) + b"\n"


def _by_worker(spans: list[Span]) -> Iterator[dict[str, Any]]:
    version = package_version()
    for (role, worker), found in groupby(sorted(spans, key=_producer), _producer):
        named: dict[str, Plain] = {"service.name": "resia", "service.instance.id": worker, "resia.role": role}
        scope = {"name": "resia", "version": version}
        yield {
            "resource": {"attributes": _attributes(named)},
            "scopeSpans": [{"scope": scope, "spans": [_span(span) for span in found]}],
        }


def _producer(span: Span) -> tuple[str, str]:
    return span.role, span.worker


def _span(span: Span) -> dict[str, Any]:
    links = [{"traceId": span.link[0], "spanId": span.link[1]}] if span.link else []
    return {
        "traceId": span.trace,
        "spanId": span.id,
        "parentSpanId": span.parent,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "links": links,
        "status": {"code": _ERROR if span.failed else _UNSET},
    }


def _attributes(values: dict[str, Plain]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Plain) -> dict[str, Any]:
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}

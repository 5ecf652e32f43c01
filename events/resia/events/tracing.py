"""Trace context of events, derived and never drawn: one trace an iteration, one span an event.

Every process derives the same ids without talking to another, so the spans that processes export as they work and
those that are made of a log years later are the same. Nothing of this decides anything: ids, seeds and digests know
nothing of a trace.
"""

from __future__ import annotations

import msgspec

from .catalogue import EVENT_CLASSES
from .ids import sha256

SPAN_CHARS, TRACE_CHARS = 16, 32
_VERSION, _SAMPLED = "00", "01"


def trace_id(run: str, iteration: int) -> str:
    """The trace of a run's iteration (0: before the first decision), 32 hex characters."""
    return sha256(f"trace:{run}:{iteration}".encode())[:TRACE_CHARS]


def root_id(trace: str) -> str:
    """The span of the whole iteration, which no event stands for."""
    return sha256(f"root:{trace}".encode())[:SPAN_CHARS]


def span_id(event_id: str) -> str:
    """The span of an event."""
    return event_id[:SPAN_CHARS]


def traceparent(trace: str, event_id: str) -> str:
    """As W3C Trace Context writes it."""
    return f"{_VERSION}-{trace}-{span_id(event_id)}-{_SAMPLED}"


def trace_in(parent: str) -> str:
    """The trace that a traceparent names, empty where it is none."""
    fields = parent.split("-")
    return fields[1] if len(fields) == 4 and len(fields[1]) == TRACE_CHARS else ""


def own_iteration(event: msgspec.Struct) -> int | None:
    """The iteration that an event of the core says it belongs to; most say none, and belong to their cause's."""
    if not isinstance(event, EVENT_CLASSES):
        return None
    iteration: int | None = getattr(event, "iteration", None)
    return iteration


def trace_of(run: str, event: msgspec.Struct, inherited: str) -> str:
    """The trace of `event`; `inherited` is that of the event before it in its batch, or of its cause."""
    own = own_iteration(event)
    return trace_id(run, own) if own is not None else inherited or trace_id(run, 0)

"""Spans of a run, made of its log alone: one trace an iteration, one span an event, the cause as its parent.

An event's span begins when its cause was recorded and ends when it was recorded itself, as the clocks of the two
producers said; one that would end before it begins has no length. An event whose cause is of another iteration hangs
under the span of its own iteration, and is linked to the cause. `Weaver` takes facts in order and gives the spans that
are then finished. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from resia.events import Custom, Fact, Logged, RunFailed, Skipped
from resia.events.catalogue import ENDINGS
from resia.events.tracing import own_iteration, root_id, span_id, trace_id

_NANO = 10**9
_FAILED = "-failed"
Plain = str | int


class Span(msgspec.Struct, frozen=True):
    """One span; times in nanoseconds since the epoch, ids in hex. `link` is (trace, span) of a cause elsewhere."""

    trace: str
    id: str
    parent: str
    name: str
    start_ns: int
    end_ns: int
    role: str
    worker: str
    failed: bool
    attributes: dict[str, Plain]
    link: tuple[str, str] | None = None


class _Seen(NamedTuple):
    iteration: int
    recorded_ns: int


class _Open(NamedTuple):
    """An iteration that has begun: when, and when its last event so far was recorded."""

    iteration: int
    start_ns: int
    end_ns: int


class Weaver:
    """Spans of one run, of its facts in order."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._seen: dict[str, _Seen] = {}
        self._of_cause: dict[str, int] = {}  # iteration of the last event with this cause
        self._open: _Open | None = None

    def weave(self, fact: Logged) -> list[Span]:
        """The event's span, and before it that of the iteration which it ends; of a message that is none, nothing."""
        if isinstance(fact, Skipped):
            return []
        iteration, envelope = self._iteration(fact), fact.envelope
        recorded = round(envelope.recorded_at * _NANO)
        cause = self._seen.get(envelope.cause or "")
        start = min(cause.recorded_ns if cause else recorded, recorded)
        done = self._turned(fact, iteration, start, recorded)
        self._seen[envelope.id] = _Seen(iteration, recorded)
        if envelope.cause is not None:
            self._of_cause[envelope.cause] = iteration
        made = self._span(fact, iteration, cause, start, recorded)
        ends = [self._root(fact, "")] if isinstance(fact, Fact) and isinstance(fact.event, ENDINGS) else []
        return [*done, made, *ends]

    def unfinished(self, last: Fact | Custom) -> list[Span]:
        """The span, so far, of an iteration that goes on; `last` is the last fact woven."""
        ended = isinstance(last, Fact) and isinstance(last.event, ENDINGS)
        return [] if ended or self._open is None else [self._root(last, "goes on")]

    def _iteration(self, fact: Fact | Custom) -> int:
        own = own_iteration(fact.event) if isinstance(fact, Fact) else None
        if own is not None:
            return own
        cause = fact.envelope.cause or ""
        known = self._seen.get(cause)
        return self._of_cause.get(cause, known.iteration if known else 0)

    def _turned(self, fact: Fact | Custom, iteration: int, start: int, end: int) -> list[Span]:
        """Note the event in its iteration; the span of the one before where this is the first of a later one."""
        now = self._open
        if now is None or iteration > now.iteration:
            done = [] if now is None else [self._root(fact, "")]
            self._open = _Open(iteration, start, end)
            return done
        if iteration == now.iteration:
            self._open = now._replace(end_ns=max(now.end_ns, end))
        return []

    def _root(self, closer: Fact | Custom, state: str) -> Span:
        """The span of the iteration that is open; whoever wrote `closer` speaks for it."""
        assert self._open is not None
        iteration, start, end = self._open
        trace, producer = trace_id(self._run, iteration), closer.envelope.producer
        attributes: dict[str, Plain] = {"resia.run": self._run, "resia.iteration": iteration}
        if state:
            attributes["resia.state"] = state
        failed = isinstance(closer, Fact) and isinstance(closer.event, RunFailed)
        return Span(
            trace,
            root_id(trace),
            "",
            f"iteration {iteration}",
            start,
            max(start, end),
            producer.role,
            producer.worker,
            failed,
            attributes,
        )

    def _span(self, fact: Fact | Custom, iteration: int, cause: _Seen | None, start: int, end: int) -> Span:
        envelope, trace = fact.envelope, trace_id(self._run, iteration)
        here = cause is not None and cause.iteration == iteration
        link = None
        if cause is not None and not here:
            link = (trace_id(self._run, cause.iteration), span_id(envelope.cause or ""))
        attributes: dict[str, Plain] = {
            "resia.run": self._run,
            "resia.iteration": iteration,
            "resia.sequence": fact.sequence,
            "resia.event.id": envelope.id,
            "resia.cause": envelope.cause or "",
            "resia.basis": envelope.basis,
            "resia.package": envelope.producer.package,
        }
        return Span(
            trace,
            span_id(envelope.id),
            span_id(envelope.cause or "") if here else root_id(trace),
            envelope.type,
            start,
            end,
            envelope.producer.role,
            envelope.producer.worker,
            envelope.type.endswith(_FAILED),
            attributes,
            link,
        )


def spans(run: str, facts: Iterable[Logged]) -> Iterator[Span]:
    """Every span of a log, the iteration that goes on included."""
    weaver, last = Weaver(run), None
    for fact in facts:
        yield from weaver.weave(fact)
        if not isinstance(fact, Skipped):
            last = fact
    if last is not None:
        yield from weaver.unfinished(last)

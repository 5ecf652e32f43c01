"""Names on the bus: one stream a run, one subject an event."""

from __future__ import annotations

import re

from .catalogue import TYPES, Event
from .errors import UnknownName, UsageError

ROLES = ("user", "meta", "task", "feedback", "trainer", "kernel-bench")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
STREAM_PREFIX = "RUN-"


def check_run(run: str) -> str:
    """`run` itself when it can be a subject token; raises UsageError otherwise."""
    if not _TOKEN.fullmatch(run):
        raise UsageError(
            f"run name '{run[:80]}' cannot be used: take 1 to 64 letters, digits, '_' or '-', such as 'my-run-1'"
        )
    return run


def stream(run: str) -> str:
    return STREAM_PREFIX + run


def event_subject(run: str, role: str, kind: str, event_id: str) -> str:
    return f"{event_prefix(run, role, kind)}.{event_id}"


def event_prefix(run: str, role: str, kind: str) -> str:
    """What the subjects of one run's events of a type and a role begin with."""
    return f"resia.{run}.{role}.{kind}"


def all_events(run: str) -> str:
    return f"resia.{run}.>"


def of_type(run: str, kind: str) -> str:
    """Filter for every event of a wire type, whoever wrote it."""
    return f"resia.{run}.*.{kind}.*"


def of_id(run: str, event_id: str) -> str:
    """Filter for the event of this id, whoever wrote it and whatever its type."""
    return f"resia.{run}.*.*.{event_id}"


def decision_fence(run: str) -> str:
    """The subject filter whose last sequence fences decisions."""
    return f"resia.{run}.feedback.decision-made.*"


def live(run: str, role: str) -> str:
    """Core subject of live progress; no stream stores it."""
    return f"resia-live.{run}.{role}"


def check_type(name: str) -> type[Event]:
    """The class of wire type `name`; raises UnknownName with the nearest types."""
    if name not in TYPES:
        raise UnknownName("event type", name, TYPES)
    return TYPES[name]

"""The seal of the test: it opens once in a lineage, by the run that was begun from nothing (ADR 0014).

Asked by whoever appends, before anything is written, and by whoever checks a log. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from resia.events import Parent, TestUnsealed

from .state import RunState


def broken_by(events: Iterable[object], state: RunState) -> str:
    """Why `events` may not follow on `state`; empty where they may."""
    opens = any(isinstance(event, TestUnsealed) for event in events)
    parent = state.request.parent if state.request else None
    return refusal(parent, opened=state.unsealed is not None) if opens else ""


def refusal(parent: Parent | None, *, opened: bool) -> str:
    """Why the test may not be opened by a run of this parent; empty where it may."""
    if parent is not None:
        return f"the sealed test stays closed in a fork: the right to open it is with the first run before {parent.run}"
    return "the sealed test has been opened, and it opens once in a lineage" if opened else ""

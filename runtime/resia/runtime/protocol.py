"""What is said to JetStream and heard back, as plain values: registry entries, expectations, refusals.

Pure; the connection itself is in `bus`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from resia.events import subjects as names


class RunEntry(msgspec.Struct, frozen=True):
    """A run in the registry. `status` is a hint for listing; the log alone says how a run stands."""

    run: str
    stream: str
    status: str = "active"


class Appended(NamedTuple):
    """Where a batch ended: sequence of its last event, and whether it had been there before."""

    sequence: int
    already: bool


def headers(
    run: str, batch: str | None, number: int, fence: int | None = None, guard: str | None = None
) -> dict[str, str]:
    """Expectation and batch membership of one message. Only the first member may carry the fence, or the filter
    `guard` on which nothing may exist; without either nothing may exist on the message's own subject."""
    fields = {"Nats-Expected-Last-Subject-Sequence": str(fence or 0)}
    if fence is not None:
        fields["Nats-Expected-Last-Subject-Sequence-Subject"] = names.decision_fence(run)
    elif guard is not None:
        fields["Nats-Expected-Last-Subject-Sequence-Subject"] = guard
    if batch is not None:
        fields |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
    return fields


def error_of(reply: dict[str, Any]) -> dict[str, Any] | None:
    error: dict[str, Any] | None = reply.get("error")
    return error


def last_number(text: str) -> int:
    """The number at the end of 'wrong last sequence: N'."""
    tail = text.rsplit(":", 1)[-1].strip()
    return int(tail) if tail.isdigit() else 0

"""What is said to JetStream and heard back, as plain values: registry entries, expectations, refusals.

Pure; the connection itself is in `bus`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from resia.events import Logged, Skipped, read
from resia.events import subjects as names
from resia.events.errors import Tampered, UnreadableEvent
from resia.events.merkle import leaf

_NANO = 10**9


class Archived(msgspec.Struct, frozen=True):
    """An archive of a run's whole log as it was at `time` (seconds since the epoch): where, and what it holds."""

    path: str
    sha256: str
    time: float
    events: int
    merkle_root: str


class Heard(NamedTuple):
    """One core message: stored nowhere, heard by whoever listens. `reply` is empty where no answer is awaited."""

    subject: str
    reply: str
    data: bytes


# Statuses of an entry that are more than a hint.
IMPORTING = "importing"  # not whole yet
IMPORTED = "imported"  # whole, from elsewhere, and not ended: served by nobody until --resume
REMOVED = "removed"  # only the archive is left


class RunEntry(msgspec.Struct, frozen=True):
    """A run in the registry. `status` is a hint for listing; the log alone says how a run stands.

    Two statuses are more than a hint: a run that is `importing` is not whole yet, and of one that is `removed` only
    `archive` is left.
    """

    run: str
    stream: str
    status: str = "active"
    archive: Archived | None = None


class Member(NamedTuple):
    """A server of a cluster that holds a log. `current`: it is up and has all of it."""

    name: str
    leads: bool
    current: bool


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


class Position(NamedTuple):
    """Where a delivered message stands in its stream, when the server stored it (nanoseconds since the epoch), and how
    often it was delivered."""

    sequence: int
    time_ns: int
    deliveries: int = 1


def position(reply: str) -> Position:
    """From `$JS.ACK.[domain.account.]stream.consumer.delivered.SEQUENCE.consumer sequence.TIME.pending[.token]`."""
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return Position(int(tokens[first]), int(tokens[first + 2]), int(tokens[first - 1]))


def pushed_to(inbox: str, stream: str, first: int, heartbeat_s: float) -> bytes:
    """The request for a consumer that sends `stream` from number `first` to `inbox`, and is forgotten when nobody
    listens there."""
    config = {
        "deliver_subject": inbox,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": first,
        "ack_policy": "none",
        "max_deliver": 1,
        "flow_control": True,
        "idle_heartbeat": int(heartbeat_s * _NANO),
        "mem_storage": True,
        "num_replicas": 1,
    }
    return msgspec.json.encode({"stream_name": stream, "config": config})


def logged(run: str, sequence: int, subject: str, data: bytes) -> Logged:
    """What the message that is number `sequence` of `run` says; Skipped where that is nothing."""
    try:
        fact = read(sequence, subject, data)
    except UnreadableEvent as cause:
        return Skipped(sequence, leaf(sequence, subject, data), cause.why)
    if fact.envelope.run != run:  # and so its subject's: a consumer may deliver into any stream
        return Skipped(sequence, fact.leaf, "its subject is another run's")
    return fact


def in_order(facts: list[Logged], after: int, last: int | None) -> list[Logged]:
    """Those of `facts` that follow number `after`, up to `last`; Tampered when a number is missing among them.

    What was delivered before, and comes again after a reconnect, is left out.
    """
    numbers = [fact.sequence for fact in facts]
    if numbers == list(range(after + 1, after + 1 + len(numbers))) and (last is None or after + len(numbers) <= last):
        return facts
    fresh = [fact for fact in facts if fact.sequence > after and (last is None or fact.sequence <= last)]
    for expected, fact in enumerate(fresh, after + 1):
        if fact.sequence != expected:
            raise Tampered(expected, f"it is missing, the next is {fact.sequence}")
    return fresh

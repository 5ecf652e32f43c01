"""What performing a request again gave, beside what the log holds: every field but what a clock said must be equal.

A blob is equal when its digest is, so an adapter or a trajectory is compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from resia.events import (
    NAMES,
    Blobs,
    ControlFailed,
    Event,
    Fact,
    RolloutFailed,
    RolloutRecorded,
    TrainingFailed,
    decode_trajectory,
)
from resia.events.errors import BlobError
from resia.replay.identity import identity, performed
from resia.replay.redeciding import Divergence, first_difference, written_by

CLOCKS = ("tokens_per_s", "seconds")
AGAIN = "performing it again gives"


class Performance(NamedTuple):
    """One settled request: `recorded` are the facts that performing it wrote, by id, `outcome` the one that settles."""

    request: Fact
    outcome: Fact
    recorded: Mapping[str, Fact]


class Unsaid(Exception):
    """A request that cannot be compared here: `why`, and each field that differs as (recorded, here)."""

    def __init__(self, why: str, fields: dict[str, tuple[str, str]] | None = None) -> None:
        super().__init__(why)
        self.why, self.fields = why, fields or {}


def compare(work: Performance, events: Sequence[Event], blobs: Blobs) -> list[Divergence]:
    """Every fact of `work` that `events`, in the order in which they were performed, do not give again.

    Progress of an attempt that was given up is left alone: it was performed on another state, perhaps elsewhere.
    Raises Unsaid where an outside party had failed, or fails now.
    """
    outcome = work.outcome
    _require_sound(outcome.event, events)
    request, basis = work.request.envelope, outcome.envelope.basis
    handler = performed(outcome.envelope.producer.role, request.type)
    left, found = dict(work.recorded), list[Divergence]()
    for ordinal, event in enumerate(events):
        recorded = left.pop(identity(request.run, request.id, event, handler, ordinal), None)
        if recorded is None:
            why = f"{AGAIN} {NAMES[type(event)]} as event {ordinal} of it, which the log has not"
            found.append(_divergence(outcome, f"; {why}"))
        elif recorded.envelope.basis == basis and (why := _difference(recorded.event, event, blobs)):
            found.append(_divergence(recorded, why))
    return found + [_divergence(f, f"; {AGAIN} none") for f in left.values() if f.envelope.basis == basis]


def _require_sound(outcome: Event, events: Sequence[Event]) -> None:
    """An engine, a sandbox, a memory that gave out is no word on the computation."""
    if isinstance(outcome, TrainingFailed | ControlFailed) and outcome not in events:
        raise Unsaid(f"it had failed ({outcome.error}) and does not fail in this way here")
    failed = next((event for event in events if isinstance(event, RolloutFailed)), None)
    if failed is not None:
        raise Unsaid(f"it cannot be performed again here: {failed.error}")


def _divergence(fact: Fact, why: str) -> Divergence:
    return Divergence(fact.sequence, f"{written_by(fact)} wrote {fact.envelope.type}{why}")


def _difference(recorded: Event, event: Event, blobs: Blobs) -> str:
    """How the two differ, empty where they do not."""
    old, new = without_clocks(recorded), without_clocks(event)
    if type(old) is not type(new):
        return f"; {AGAIN} {NAMES[type(new)]}{f' ({new.error})' if isinstance(new, TrainingFailed) else ''}"
    if old == new:
        return ""
    text = f" with {first_difference(old, new, AGAIN)}"
    if isinstance(old, RolloutRecorded) and isinstance(new, RolloutRecorded):
        text += _parting(old, new, blobs)
    return text


def without_clocks(event: Event) -> Event:
    """`event` with what a clock said set to 0."""
    clocks = {name: 0.0 for name in CLOCKS if name in event.__struct_fields__}
    return msgspec.structs.replace(event, **clocks) if clocks else event


def _parting(old: RolloutRecorded, new: RolloutRecorded, blobs: Blobs) -> str:
    """The first place where the two trajectories part, empty when one cannot be read or both are equal."""
    try:
        a, b = (decode_trajectory(blobs.get(blob)) for blob in (old.trajectory, new.trajectory))
    except (BlobError, msgspec.DecodeError):
        return ""
    for number, (x, y) in enumerate(zip(a.turns, b.turns, strict=False)):
        for field in x.__struct_fields__:
            if getattr(x, field) != getattr(y, field):
                return f" (in turn {number}, {_first_item(field, getattr(x, field), getattr(y, field))})"
    return ""


def _first_item(field: str, old: Any, new: Any) -> str:
    """The first item of two tuples that differs, or the two values."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        for number, (x, y) in enumerate(zip(old, new, strict=False)):
            if x != y:
                return f"{field}[{number}] is {x!r:.40}, here {y!r:.40}"
        return f"{field} has {len(old)} items, here {len(new)}"
    return f"{field} is {old!r:.40}, here {new!r:.40}"

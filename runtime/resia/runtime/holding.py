"""Who has what in hand, for how long, and whether that is longer than others took: for whoever watches.

A worker says so every few seconds of work, on the run's live subject. Nothing is decided by it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median
from typing import Any

import msgspec

from resia.events import OUTCOMES, Fact, Logged

KIND = "holds"  # of a live message
TIMES, LEAST_S = 4.0, 30.0  # slow: this often the median of its type, and this long at least
QUIET_S = 300.0  # without progress
KEPT = 64


class Holding(msgspec.Struct, frozen=True):
    """A worker has event `sequence` in hand for `held_s` seconds, and `quiet_s` of them nothing moved."""

    run: str
    role: str
    worker: str
    sequence: int
    type: str
    held_s: float
    quiet_s: float
    kind: str = KIND


def heard(data: dict[str, Any]) -> Holding | None:
    """A live message that says who holds what, None for another."""
    if data.get("kind") != KIND:
        return None
    try:
        return msgspec.convert(data, Holding)
    except msgspec.ValidationError:
        return None  # anybody of the role may say anything here


class Pace:
    """How long requests of each type took of late, whoever performed them, by the times written in their events."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[str, float]] = {}  # by id: what was asked and not answered yet
        self._took: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._answered: dict[str, float] = {}  # by worker, last

    def saw(self, fact: Logged) -> None:
        """One more event of the run."""
        if not isinstance(fact, Fact):
            return
        envelope = fact.envelope
        if isinstance(fact.event, OUTCOMES):
            kind, asked = self._asked.pop(envelope.cause or "", ("", 0.0))
            worker = envelope.producer.worker
            if kind:
                self._took[kind].append(envelope.recorded_at - max(asked, self._answered.get(worker, asked)))
            self._answered[worker] = envelope.recorded_at
        elif envelope.type.endswith("-requested") or envelope.type == "kernel-submitted":
            self._asked[envelope.id] = (envelope.type, envelope.recorded_at)

    def usual_s(self, kind: str) -> float | None:
        """Median seconds of the last requests of this type; None before the first."""
        return median(self._took[kind]) if self._took.get(kind) else None

    def slow(self, held: Holding) -> str:
        """What is wrong with the time that a worker takes; nothing where nothing is."""
        usual = self.usual_s(held.type)
        if held.quiet_s > QUIET_S:
            return f"no progress for {held.quiet_s:.0f} s"
        if usual is not None and held.held_s > max(LEAST_S, TIMES * usual):
            return f"{held.held_s:.0f} s so far, {usual:.1f} s are usual"
        return ""

"""Checking a log: numbering, ids, causes, bases, roots, and, where deciders are handed in, every decision again.

In: facts in order, the state before the first of them, and each role's `decide`. Out: a `Report` that names everything
that does not fit, in log order. One pass; folding along gives the state digest. Bytes of blobs are the caller's to
check: `blobs_named` says which an event names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from resia.events import (
    Blob,
    Custom,
    DecisionMade,
    Fact,
    Logged,
    MessageQuarantined,
    Parent,
    RunCompleted,
    RunFailed,
    RunRequested,
    Skipped,
    TestUnsealed,
)
from resia.events.merkle import root

from .digest import digest
from .fold import evolve, fold
from .redeciding import Decide, Redecider
from .seal import refusal
from .state import RunState

Kind = Literal[
    "numbering",
    "unreadable",
    "quarantine",
    "run",
    "id",
    "cause",
    "basis",
    "root",
    "after-end",
    "seal",
    "nondeterminism",
    "blob",
    "compute",
    "parent",
]


class Problem(msgspec.Struct, frozen=True):
    """Event `sequence` does not fit: `why` says what stands there and what was expected."""

    sequence: int
    kind: Kind
    why: str


class Report(msgspec.Struct, frozen=True):
    """What a check found over `events` messages; `state` is that after the last. Problems in log order."""

    events: int
    state: RunState
    problems: tuple[Problem, ...]

    @property
    def digest(self) -> str:
        """Of the state; computed anew each time."""
        return digest(self.state)

    @property
    def first(self) -> Problem | None:
        return self.problems[0] if self.problems else None


def check(
    facts: Iterable[Logged], decide_by_role: Mapping[str, Decide] | None = None, origin: RunState | None = None
) -> Report:
    """Check a whole log. With `decide_by_role` every decided event of those roles is decided again.

    `origin` is the state before event 1, which a fork inherits from its parent; None: nothing.
    """
    log, state = tuple(facts), origin or RunState()
    checker = _Checker(state.root_to)
    if not decide_by_role:
        for fact in log:
            checker.take(fact)
        return checker.report(fold(log, state))
    redecider = Redecider(decide_by_role, log, state)
    for fact in log:
        checker.take(fact)
        redecider.take(fact)
        state = evolve(state, fact)
        redecider.reached(state)
    redecider.close()
    for sequence, why in redecider.divergences:
        checker.found(sequence, "nondeterminism", why)
    return checker.report(state)


def blobs_named(event: msgspec.Struct) -> tuple[Blob, ...]:
    """Every blob that an event names, each once, in the order of its fields."""
    return tuple(dict.fromkeys(_blobs(event)))


def _blobs(value: object) -> Iterable[Blob]:
    if isinstance(value, Blob):
        yield value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _blobs(getattr(value, field))
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from _blobs(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _blobs(held)


class _Checker:
    """What is known of the log up to the last message taken, but for its state."""

    def __init__(self, root_to: int) -> None:
        self._root_to = root_to
        self._last = 0
        self._ids: dict[str, int] = {}  # id -> event number, of custom facts too
        self._leaves: dict[int, str] = {}
        self._problems: list[Problem] = []
        self._run: str | None = None
        self._end: int | None = None
        self._parent: Parent | None = None
        self._unsealed = False
        self._unreadable: dict[int, Skipped] = {}
        self._events = 0

    def take(self, fact: Logged) -> None:
        self._events += 1
        if fact.sequence != self._last + 1:
            self.found(fact.sequence, "numbering", f"the number should be {self._last + 1}")
        if isinstance(fact, Skipped):
            self._unreadable[fact.sequence] = fact
        else:
            self._check_id(fact)
            if isinstance(fact, Fact):
                self._check(fact)
            self._ids.setdefault(fact.envelope.id, fact.sequence)
        self._last = fact.sequence
        self._leaves[fact.sequence] = fact.leaf

    def report(self, state: RunState) -> Report:
        for skipped in self._unreadable.values():
            self.found(skipped.sequence, "unreadable", skipped.why)
        problems = tuple(sorted(self._problems, key=lambda problem: problem.sequence))
        return Report(self._events, state, problems)

    def found(self, sequence: int, kind: Kind, why: str) -> None:
        self._problems.append(Problem(sequence, kind, why))

    def _check_id(self, fact: Fact | Custom) -> None:
        envelope, sequence = fact.envelope, fact.sequence
        self._run = self._run or envelope.run
        if envelope.run != self._run:
            self.found(sequence, "run", f"it is of run '{envelope.run}', the log is of run '{self._run}'")
        if envelope.id in self._ids:
            self.found(sequence, "id", f"id {envelope.id} is event {self._ids[envelope.id]}'s")

    def _check(self, fact: Fact) -> None:
        self._check_envelope(fact)
        event = fact.event
        if isinstance(event, DecisionMade | RunCompleted):
            self._check_root(fact.sequence, fact.envelope.basis, event)
        if self._end is not None and fact.envelope.basis >= self._end:
            why = f"{fact.envelope.type} follows event {self._end}, which ended the run and which its writer had seen"
            self.found(fact.sequence, "after-end", why)
        if isinstance(event, RunCompleted | RunFailed) and self._end is None:
            self._end = fact.sequence
        if isinstance(event, RunRequested):
            self._parent = event.parent
        if isinstance(event, TestUnsealed):
            if why := refusal(self._parent, opened=self._unsealed):
                self.found(fact.sequence, "seal", why)
            self._unsealed = True
        if isinstance(event, MessageQuarantined):
            self._check_quarantine(fact.sequence, event)

    def _check_envelope(self, fact: Fact) -> None:
        envelope, sequence = fact.envelope, fact.sequence
        cause = self._ids.get(envelope.cause) if envelope.cause is not None else None
        first = isinstance(fact.event, RunRequested) and not self._ids
        if envelope.cause is None and not (first or isinstance(fact.event, MessageQuarantined)):
            self.found(sequence, "cause", f"nothing caused this {envelope.type}, and it is not the run's first event")
        elif envelope.cause is not None and cause is None:
            self.found(sequence, "cause", f"its cause {envelope.cause} is no earlier event")
        if not (cause or 0) <= envelope.basis < sequence:
            why = f"decided at event {envelope.basis}, which is not between its cause, event {cause or 0}, and itself"
            self.found(sequence, "basis", why)

    def _check_quarantine(self, sequence: int, event: MessageQuarantined) -> None:
        """A message that is quarantined is accounted for, and no problem; one that can be read must not be."""
        skipped = self._unreadable.pop(event.sequence, None)
        if skipped is None or skipped.leaf != event.leaf:
            self.found(sequence, "quarantine", f"message {event.sequence} is not the one that it quarantines")

    def _check_root(self, sequence: int, basis: int, event: DecisionMade | RunCompleted) -> None:
        """The root must cover what no earlier root does, up to the basis."""
        start, end = event.root_from, event.root_to
        if start != self._root_to:
            self.found(sequence, "root", f"its root begins after {start}, the last one ended at {self._root_to}")
        if end != basis:
            self.found(sequence, "root", f"its root ends at {end}, it was decided at {basis}")
        self._root_to = end
        if not 0 <= start <= end < sequence:
            return
        computed = root([leaf for n in range(start + 1, end + 1) if (leaf := self._leaves.get(n)) is not None])
        if computed != event.merkle_root:
            why = f"events {start + 1} to {end} give root {computed}, recorded is {event.merkle_root}"
            self.found(sequence, "root", why)

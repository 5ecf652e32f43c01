"""Checking a log: numbering, ids, causes, roots, and, where deciders are handed in, every decision again.

In: facts in order and each role's `decide`. Out: a `Report` that names everything that does not fit, the first first.
One pass; folding along gives the state digest. States are persistent maps, so keeping them all for the decisions depth
costs little. Bytes of blobs are the caller's to check: `blobs_named` says which an event names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from resia.events import (
    NAMES,
    OUTCOMES,
    Blob,
    Custom,
    DecisionMade,
    Event,
    Fact,
    KernelSubmitted,
    Logged,
    MessageQuarantined,
    RolloutFailed,
    RolloutRecorded,
    RoundRequested,
    RunCompleted,
    RunFailed,
    RunRequested,
    Skipped,
    StepTrained,
    TrainingFailed,
)
from resia.events.merkle import root

from .digest import digest
from .fold import evolve
from .identity import decided, identity
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
    "nondeterminism",
    "blob",
]
Decide = Callable[[RunState, Fact], Sequence[Event]]
# Facts that `perform` writes: inputs of a replay, not results of a rule.
PERFORMED = frozenset(
    {*OUTCOMES, RolloutRecorded, RolloutFailed, StepTrained, KernelSubmitted, MessageQuarantined} - {TrainingFailed}
)
# What a rule raises on a history that it could not have been given.
_RULE_ERRORS = (LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError, StopIteration)
VALUE_CHARS = 120


class Problem(msgspec.Struct, frozen=True):
    """Event `sequence` does not fit: `why` says what stands there and what was expected."""

    sequence: int
    kind: Kind
    why: str


class Report(msgspec.Struct, frozen=True):
    """What a check found over `events` messages; `digest` is of the state after the last. Problems in log order."""

    events: int
    digest: str
    problems: tuple[Problem, ...]

    @property
    def first(self) -> Problem | None:
        return self.problems[0] if self.problems else None


def check(facts: Iterable[Logged], decide_by_role: Mapping[str, Decide] | None = None) -> Report:
    """Read a whole log once. With `decide_by_role` every decided event of those roles is decided again."""
    checker = _Checker(decide_by_role or {})
    for fact in facts:
        checker.take(fact)
    return checker.report()


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
    """What is known of the log up to the last message taken."""

    def __init__(self, decide_by_role: Mapping[str, Decide]) -> None:
        self._deciders = decide_by_role
        self._state = RunState()
        self._states: dict[int, RunState] = {0: self._state}
        self._by_id: dict[str, Fact] = {}
        self._ids: dict[str, int] = {}  # of custom facts too
        self._leaves: dict[int, str] = {}
        self._problems: list[Problem] = []
        self._run: str | None = None
        self._end: int | None = None
        self._unreadable: dict[int, Skipped] = {}
        self._batch: list[Fact] = []
        self._events = 0

    def take(self, fact: Logged) -> None:
        self._events += 1
        expected = self._state.sequence + 1
        if fact.sequence != expected:
            self._found(fact.sequence, "numbering", f"the number should be {expected}")
        if isinstance(fact, Fact):
            self._check(fact)
        else:
            self._close_batch()
        if isinstance(fact, Skipped):
            self._unreadable[fact.sequence] = fact
        elif isinstance(fact, Custom):
            self._check_id(fact)
        self._state = evolve(self._state, fact)
        self._leaves[fact.sequence] = fact.leaf
        if self._deciders:
            self._states[fact.sequence] = self._state

    def report(self) -> Report:
        self._close_batch()
        for skipped in self._unreadable.values():
            self._found(skipped.sequence, "unreadable", skipped.why)
        problems = tuple(sorted(self._problems, key=lambda problem: problem.sequence))
        return Report(self._events, digest(self._state), problems)

    def _found(self, sequence: int, kind: Kind, why: str) -> None:
        self._problems.append(Problem(sequence, kind, why))

    def _check(self, fact: Fact) -> None:
        self._check_envelope(fact)
        self._check_root(fact)
        if self._end is not None and fact.envelope.basis >= self._end:
            why = f"{fact.envelope.type} follows event {self._end}, which ended the run and which its writer had seen"
            self._found(fact.sequence, "after-end", why)
        if isinstance(fact.event, RunCompleted | RunFailed) and self._end is None:
            self._end = fact.sequence
        if isinstance(fact.event, MessageQuarantined):
            self._check_quarantine(fact.sequence, fact.event)
        self._gather(fact)
        self._by_id.setdefault(fact.envelope.id, fact)

    def _check_quarantine(self, sequence: int, event: MessageQuarantined) -> None:
        """A message that is quarantined is accounted for, and no problem; one that can be read must not be."""
        skipped = self._unreadable.pop(event.sequence, None)
        if skipped is None or skipped.leaf != event.leaf:
            self._found(sequence, "quarantine", f"message {event.sequence} is not the one that it quarantines")

    def _check_id(self, fact: Fact | Custom) -> None:
        envelope, sequence = fact.envelope, fact.sequence
        self._run = self._run or envelope.run
        if envelope.run != self._run:
            self._found(sequence, "run", f"it is of run '{envelope.run}', the log is of run '{self._run}'")
        if envelope.id in self._ids:
            self._found(sequence, "id", f"id {envelope.id} is event {self._ids[envelope.id]}'s")
        self._ids.setdefault(envelope.id, sequence)

    def _check_envelope(self, fact: Fact) -> None:
        self._check_id(fact)
        envelope, sequence = fact.envelope, fact.sequence
        cause = self._by_id.get(envelope.cause) if envelope.cause is not None else None
        first = isinstance(fact.event, RunRequested) and not self._by_id
        if envelope.cause is None and not (first or isinstance(fact.event, MessageQuarantined)):
            self._found(sequence, "cause", f"nothing caused this {envelope.type}, and it is not the run's first event")
        elif envelope.cause is not None and cause is None:
            self._found(sequence, "cause", f"its cause {envelope.cause} is no earlier event")
        earliest = cause.sequence if cause else 0
        if not earliest <= envelope.basis < sequence:
            why = f"decided at event {envelope.basis}, which is not between its cause, event {earliest}, and itself"
            self._found(sequence, "basis", why)

    def _check_root(self, fact: Fact) -> None:
        """The root must cover what no earlier root does, up to the basis."""
        event = fact.event
        if not isinstance(event, DecisionMade | RunCompleted):
            return
        start, end = event.root_from, event.root_to
        if start != self._state.root_to:
            self._found(
                fact.sequence, "root", f"its root begins after {start}, the last one ended at {self._state.root_to}"
            )
        if end != fact.envelope.basis:
            self._found(fact.sequence, "root", f"its root ends at {end}, it was decided at {fact.envelope.basis}")
        if not 0 <= start <= end < fact.sequence:
            return
        computed = root([leaf for n in range(start + 1, end + 1) if (leaf := self._leaves.get(n)) is not None])
        if computed != event.merkle_root:
            why = f"events {start + 1} to {end} give root {computed}, recorded is {event.merkle_root}"
            self._found(fact.sequence, "root", why)

    # -- decisions ---------------------------------------------------------------------------------------------

    def _gather(self, fact: Fact) -> None:
        """Events of one decision are one batch: same writer, cause and basis, one after the other."""
        if self._batch and _batch_key(self._batch[0]) != _batch_key(fact):
            self._close_batch()
        if self._is_decided(fact):
            self._batch.append(fact)

    def _is_decided(self, fact: Fact) -> bool:
        cause = self._by_id.get(fact.envelope.cause or "")
        if cause is None or fact.envelope.producer.role not in self._deciders:
            return False
        if isinstance(fact.event, TrainingFailed):  # the rules may give up a training, and so may the optimiser
            return not isinstance(cause.event, RoundRequested)
        return type(fact.event) not in PERFORMED

    def _close_batch(self) -> None:
        batch, self._batch = self._batch, []
        state = self._states.get(batch[0].envelope.basis) if batch else None
        if state is None or batch[0].envelope.basis >= batch[0].sequence:
            return
        envelope = batch[0].envelope
        cause = self._by_id[envelope.cause or ""]
        writer = f"{envelope.producer.role} {envelope.producer.package}"
        try:
            events = list(self._deciders[envelope.producer.role](state, cause))
        except _RULE_ERRORS as error:
            why = f"{writer} wrote {envelope.type}; on replay the rule fails: {type(error).__name__}: {error}"
            self._found(batch[0].sequence, "nondeterminism", why)
            return
        if difference := _difference(batch, events, cause):
            sequence, why = difference
            self._found(sequence, "nondeterminism", f"{writer} wrote {why}")


def _batch_key(fact: Fact) -> tuple[str, str | None, int]:
    return fact.envelope.producer.role, fact.envelope.cause, fact.envelope.basis


def _difference(batch: Sequence[Fact], events: Sequence[Event], cause: Fact) -> tuple[int, str] | None:
    """(event number, what stands there and what replay gives) of the first difference."""
    for ordinal, fact in enumerate(batch):
        kind = fact.envelope.type
        if ordinal >= len(events):
            return fact.sequence, f"{kind}; on replay the rule gives {len(events)} events, the log has {len(batch)}"
        event = events[ordinal]
        if type(event) is not type(fact.event):
            return fact.sequence, f"{kind}; on replay the rule gives {NAMES[type(event)]}"
        if event != fact.event:
            return fact.sequence, f"{kind} with {_first_field(fact.event, event)}"
        handler = decided(fact.envelope.producer.role, cause.envelope.type)
        expected = identity(fact.envelope.run, fact.envelope.cause, event, handler, ordinal)
        if fact.envelope.id != expected:
            return fact.sequence, f"{kind} under id {fact.envelope.id}; on replay its id is {expected}"
    if len(events) > len(batch):
        missing = NAMES[type(events[len(batch)])]
        return batch[-1].sequence, f"{batch[-1].envelope.type}; on replay the rule gives {missing} after it"
    return None


def _first_field(logged: Event, replayed: Event) -> str:
    for field in logged.__struct_fields__:
        old, new = getattr(logged, field), getattr(replayed, field)
        if old != new:
            return f"{field} = {_clip(old)}; on replay the rule gives {_clip(new)}"
    return "the same fields"  # values that do not equal themselves


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}..."

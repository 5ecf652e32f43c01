"""Taking decisions again: the same rules on the same state must give the events that the log holds.

Events of one decision are one batch: one writer, one cause, one basis, one after the other. `Redecider` gathers them as
the log is read and compares each batch with what the rule gives on the state at its basis. Outcomes of `perform` are
inputs, so they are never decided again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from resia.events import (
    NAMES,
    OUTCOMES,
    Event,
    Fact,
    KernelSubmitted,
    Logged,
    MessageQuarantined,
    RolloutFailed,
    RolloutRecorded,
    RoundRequested,
    StepTrained,
    TrainingFailed,
)

from .identity import decided, identity
from .state import RunState

Decide = Callable[[RunState, Fact], Sequence[Event]]
# Facts that `perform` writes: inputs of a replay, not results of a rule.
PERFORMED = frozenset(
    {*OUTCOMES, RolloutRecorded, RolloutFailed, StepTrained, KernelSubmitted, MessageQuarantined} - {TrainingFailed}
)
# What a rule raises on a history that it could not have been given.
_RULE_ERRORS = (LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError, StopIteration)
VALUE_CHARS = 120


class Divergence(NamedTuple):
    """Event `sequence` is not what replay gives; `why` says what stands there, who wrote it, and what replay gives."""

    sequence: int
    why: str


class Redecider:
    """Takes the decisions of one log again. Only states that a decision was based on are kept."""

    def __init__(self, decide_by_role: Mapping[str, Decide], facts: Iterable[Logged], origin: RunState) -> None:
        self._deciders = decide_by_role
        self._bases = {
            fact.envelope.basis
            for fact in facts
            if isinstance(fact, Fact) and fact.envelope.producer.role in decide_by_role
        }
        self._states = {0: origin}
        self._by_id: dict[str, Fact] = {}
        self._batch: list[Fact] = []
        self.divergences: list[Divergence] = []

    def reached(self, state: RunState) -> None:
        """`state` is that after the event taken last."""
        if state.sequence in self._bases:
            self._states[state.sequence] = state

    def take(self, fact: Logged) -> None:
        """One more message of the log, before its state is `reached`."""
        if not isinstance(fact, Fact):
            self.close()
            return
        if self._batch and _batch_key(self._batch[0]) != _batch_key(fact):
            self.close()
        if self._is_decided(fact):
            self._batch.append(fact)
        self._by_id.setdefault(fact.envelope.id, fact)

    def _is_decided(self, fact: Fact) -> bool:
        cause = self._by_id.get(fact.envelope.cause or "")
        if cause is None or fact.envelope.producer.role not in self._deciders:
            return False
        if isinstance(fact.event, TrainingFailed):  # the rules may give up a training, and so may the optimiser
            return not isinstance(cause.event, RoundRequested)
        return type(fact.event) not in PERFORMED

    def close(self) -> None:
        """The batch under way is whole: decide it again."""
        batch, self._batch = self._batch, []
        state = self._states.get(batch[0].envelope.basis) if batch else None
        if state is None or batch[0].envelope.basis >= batch[0].sequence:
            return  # a basis that cannot be is named by whoever checks the envelopes
        envelope = batch[0].envelope
        cause = self._by_id[envelope.cause or ""]
        try:
            events = list(self._deciders[envelope.producer.role](state, cause))
        except _RULE_ERRORS as error:
            why = f"{envelope.type}; on replay the rule fails: {type(error).__name__}: {error}"
            self._found(batch[0].sequence, why, batch[0])
            return
        if difference := _difference(batch, events, cause):
            self._found(*difference, batch[0])

    def _found(self, sequence: int, why: str, fact: Fact) -> None:
        self.divergences.append(Divergence(sequence, f"{written_by(fact)} wrote {why}"))


def written_by(fact: Fact) -> str:
    """Role and package version, so that a rule that has changed since is told from a log that was."""
    return f"{fact.envelope.producer.role} {fact.envelope.producer.package}"


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
            return fact.sequence, f"{kind} with {first_difference(fact.event, event, 'the rule gives')}"
        handler = decided(fact.envelope.producer.role, cause.envelope.type)
        expected = identity(fact.envelope.run, fact.envelope.cause, event, handler, ordinal)
        if fact.envelope.id != expected:
            return fact.sequence, f"{kind} under id {fact.envelope.id}; on replay its id is {expected}"
    if len(events) > len(batch):
        missing = NAMES[type(events[len(batch)])]
        return batch[-1].sequence, f"{batch[-1].envelope.type}; on replay the rule gives {missing} after it"
    return None


def first_difference(logged: Event, replayed: Event, gives: str) -> str:
    """The first value in which two events of one type differ, under its path: `gives` says whose the second is."""
    path, old, new = _parting("", logged, replayed)
    return f"{path} = {clip(old)}; on replay {gives} {clip(new)}" if path else "the same fields"


def _parting(path: str, old: object, new: object) -> tuple[str, object, object]:
    """Path and values of the innermost first difference; the path of values that do not equal themselves is empty."""
    for step, x, y in _parts(old, new):
        if x != y:
            return _parting(f"{path}.{step}".lstrip("."), x, y)
    return path, old, new


def _parts(old: object, new: object) -> Iterable[tuple[str, object, object]]:
    """What two values consist of, side by side; nothing when they are not made of the same parts."""
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        return [(name, getattr(old, name), getattr(new, name)) for name in old.__struct_fields__]
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        return [(str(key), old[key], new[key]) for key in old]
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return [(str(number), x, y) for number, (x, y) in enumerate(zip(old, new, strict=True))]
    return []


def clip(value: object) -> str:
    """`value` as Python writes it, at most VALUE_CHARS characters."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}..."

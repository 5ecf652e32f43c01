"""Forks: where a run's history begins when its first event names a parent.

The child's log holds its own events only; everything up to the fork is the parent's, by reference. Pure: whoever reads
a child hands in the parent's state at the fork. A lineage is the chain of runs that took the decisions of one history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from immutables import Map

from resia.events import DecisionMade, Fact, Logged, Parent, RunRequested
from resia.events.merkle import root

from .state import DecisionAt, RunState


def parent_of(first: Logged) -> Parent | None:
    """The parent that a run's first event names, None when it has none."""
    event = first.event if isinstance(first, Fact) else None
    return event.parent if isinstance(event, RunRequested) else None


def inherit(state: RunState) -> RunState:
    """What a child begins with: the parent's state at the fork, numbered anew.

    Decisions of the parent are at number 0: they fence nothing in the child's own stream. Tokens and money go on from
    the parent's; seconds begin anew, as only whoever follows a run counts them.
    """
    return msgspec.structs.replace(
        state,
        sequence=0,
        decisions=tuple(DecisionAt(0, at.decision) for at in state.decisions),
        skipped=(),
        leaves=Map(),
        root_to=0,
        ending=None,
        overdrawn=Map(),
    )


def before_decision(facts: Sequence[Logged], number: int) -> Parent:
    """The moment before event `number` of a log, its DecisionMade, was taken: what its writer had folded by then.

    `facts` are the log's from 1 on. Raises ValueError when `number` is no decision.
    """
    fact = facts[number - 1]
    if not isinstance(fact, Fact) or not isinstance(fact.event, DecisionMade):
        raise ValueError(f"event {number} is no decision")
    last = fact.envelope.basis
    leaves = [earlier.leaf for earlier in facts[:last]]
    return Parent(fact.envelope.run, last, root(leaves), fact.event.iteration)


class Segment(NamedTuple):
    """Decisions of a history from number `first` on are `run`'s, up to the next segment's."""

    run: str
    first: int


def lineage(run: str, parents: Sequence[Parent]) -> tuple[Segment, ...]:
    """Who took which decisions of a run's history, the first run first. `parents` are nearest first."""
    names = [*(parent.run for parent in reversed(parents)), run]
    firsts = [1, *(parent.iteration for parent in reversed(parents))]
    return tuple(map(Segment, names, firsts))


def owner_of(history: Sequence[Segment], iteration: int) -> str:
    """The run that took decision `iteration`; the first run for a number below 1."""
    return next((s.run for s in reversed(history) if s.first <= iteration), history[0].run)


def parted_at(histories: Sequence[Sequence[Segment]]) -> int | None:
    """The first decision that not all runs share; None when they are not of one lineage, or only one is given."""
    if len(histories) < 2 or len({history[0].run for history in histories}) > 1:
        return None
    turns = sorted({segment.first for history in histories for segment in history})
    return next((k for k in turns if len({owner_of(history, k) for history in histories}) > 1), None)

"""Forks: where a run's history begins when its first event names a parent.

The child's log holds its own events only; everything up to the fork is the parent's, by reference. Pure: whoever reads
a child hands in the parent's state at the fork.
"""

from __future__ import annotations

import msgspec
from immutables import Map

from resia.events import Fact, Logged, Parent, RunRequested

from .state import DecisionAt, RunState


def parent_of(first: Logged) -> Parent | None:
    """The parent that a run's first event names, None when it has none."""
    event = first.event if isinstance(first, Fact) else None
    return event.parent if isinstance(event, RunRequested) else None


def inherit(state: RunState) -> RunState:
    """What a child begins with: the parent's state at the fork, numbered anew.

    Decisions of the parent are at number 0: they fence nothing in the child's own stream.
    """
    return msgspec.structs.replace(
        state,
        sequence=0,
        decisions=tuple(DecisionAt(0, at.decision) for at in state.decisions),
        skipped=(),
        leaves=Map(),
        root_to=0,
        ending=None,
    )

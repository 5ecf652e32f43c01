"""How a run ends: with the sealed test and the controls, or, for a fork, without either. Pure."""

from __future__ import annotations

from resia.events import DecisionMade, Event, RunCompleted, RunFailed
from resia.events.merkle import root
from resia.replay.state import RunState


def root_since_last(state: RunState) -> str:
    """Merkle root over everything folded since the last one: events (root_to, sequence]."""
    return root([state.leaves[n] for n in range(state.root_to + 1, state.sequence + 1)])


def without_test(state: RunState, decision: DecisionMade) -> Event:
    """The end of a fork, without test scores."""
    if state.champion is None or state.baseline is None:
        return RunFailed("there is no champion to end with")
    return RunCompleted(
        f"{decision.reason}; a fork leaves the sealed test closed",
        state.champion.candidate,
        state.baseline.candidate,
        None,
        None,
        root_since_last(state),
        state.root_to,
        state.sequence,
    )


def with_test(state: RunState) -> list[Event]:
    """Complete the run once the sealed test and the controls are in."""
    unsealed, reason = state.unsealed, state.decisions[-1].decision.reason if state.decisions else ""
    if unsealed is None or state.controls is None:
        return []
    scores: dict[str, float | None] = {}
    for name in ("test", "baseline") if unsealed.baseline != unsealed.champion else ("test",):
        found = [e for e in state.evaluations.values() if e.request.purpose == name]
        if not found or found[0].completed is None:
            return []
        score = found[0].completed.scores.get("test")
        scores[name] = score.mean if score else None
    return [
        RunCompleted(
            reason,
            unsealed.champion,
            unsealed.baseline,
            scores["test"],
            scores.get("baseline", scores["test"]),
            root_since_last(state),
            state.root_to,
            state.sequence,
        )
    ]

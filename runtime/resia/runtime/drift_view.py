"""Drift between a server's log-probabilities and the trainer's, in words; see `resia.events.drift`."""

from __future__ import annotations

from resia.events import DriftMeasured
from resia.replay.state import RunState


def drifts_of(state: RunState) -> list[DriftMeasured]:
    """Those that were measured, in the order of the evaluations."""
    found = (state.drifts.get(id_) for id_ in state.evaluation_order)
    return [drift for drift in found if isinstance(drift, DriftMeasured)]


def drift_text(drift: DriftMeasured) -> str:
    """One measurement in a sentence."""
    over = "over" if drift.alarmed else "within"
    return (
        f"log-probabilities of {drift.engine} differ from the trainer's by {drift.mean:.2g} nats a token, {over} the"
        f" bound of {drift.bound:g} (largest {drift.largest:.2g}, {drift.tokens} tokens)"
    )

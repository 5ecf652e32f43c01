"""Pure steps from one version of a payload to the next, so that old logs stay readable for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Payload = dict[str, Any]


def step_trained_1(payload: Payload) -> Payload:
    """Version 1 gave `kl` summed over the step's tokens and no clip fraction; 2 gives it per token."""
    return {
        **payload,
        "kl": payload["kl"] / max(payload["tokens"], 1),
        "clip_fraction": 0.0,
        "ess": payload.get("ess", 1.0),
    }


def run_requested_1(payload: Payload) -> Payload:
    """Runs of version 1 never asked for a lost rollout again; since 2 the setting says how often."""
    settings = payload["settings"]
    return {**payload, "settings": {**settings, "sampling": {"retries": 0, **settings.get("sampling", {})}}}


UPCASTERS: dict[tuple[str, int], Callable[[Payload], Payload]] = {
    ("run-requested", 1): run_requested_1,
    ("step-trained", 1): step_trained_1,
}

"""How far a server's log-probabilities are from the trainer's: DriftRequested -> DriftMeasured | DriftFailed.

Nothing waits for it and no rule reads it: it says whether the importance ratios of a run can be trusted.
"""

from __future__ import annotations

import msgspec

from .evaluation import Manifest
from .run import Candidate


class DriftRequested(msgspec.Struct, frozen=True):
    """Compare the recorded log-probabilities of `rollouts` (event ids of `evaluation`, sorted) with recomputed ones.

    `bound` is on the mean absolute difference, in nats a token.
    """

    evaluation: str
    candidate: Candidate
    rollouts: tuple[str, ...]
    bound: float


class DriftMeasured(msgspec.Struct, frozen=True):
    """Absolute differences over `tokens` completion tokens, in nats; `manifest` is the trainer's, `engine` what had
    sampled them."""

    request: str
    evaluation: str
    tokens: int
    mean: float
    largest: float
    bound: float
    alarmed: bool
    engine: str
    manifest: Manifest


class DriftFailed(msgspec.Struct, frozen=True):
    """Nothing could be compared, which is no word on the log-probabilities."""

    request: str
    evaluation: str
    error: str

"""A worker that uses another framework, in an environment of its own: river's ADWIN looks for a shift of the reward.

Rewards are read from the fold of the run, oldest evaluation first, so the same log always gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from river import drift  # type: ignore[import-not-found]

from resia.events import EvaluationCompleted, Fact, Namespace
from resia.runtime.plugin import Run, worker

watch = Namespace("drift")


@watch.event("reward-shifted")
class RewardShifted(msgspec.Struct, frozen=True):
    """The mean reward changed within evaluation `evaluation` (id of its request), to about `mean`."""

    evaluation: str
    rollouts: int
    mean: float


@worker(role="drift", name="rewards", consumes=[EvaluationCompleted], emits=[RewardShifted])
def rewards(fact: Fact, run: Run) -> Iterator[RewardShifted]:
    """Feed every reward up to this evaluation; say so when one of its own was the surprise."""
    detector, seen = drift.ADWIN(), 0
    for request in run.state.evaluation_order:
        evaluation = run.state.evaluations[request]
        shifted = False
        for _, rollout in sorted(evaluation.rollouts.items()):
            detector.update(rollout.reward)
            seen += 1
            shifted |= detector.drift_detected
        if isinstance(fact.event, EvaluationCompleted) and request == fact.event.request:
            if shifted:
                yield RewardShifted(request, seen, detector.estimation)
            return

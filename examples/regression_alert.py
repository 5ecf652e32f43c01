"""A worker of your own: `resia worker start examples/regression_alert.py` says when a candidate is clearly worse."""

from collections.abc import Iterator

import msgspec

from resia.events import EvaluationCompleted, Fact, Namespace
from resia.runtime.plugin import Run, worker

alerts = Namespace("alerts")


@alerts.event("regression-found")
class RegressionFound(msgspec.Struct, frozen=True):
    evaluation: str
    champion: float
    candidate: float


@worker(role="alerts", consumes=[EvaluationCompleted], emits=[RegressionFound])
def regressions(fact: Fact, run: Run) -> Iterator[RegressionFound]:
    champion, measured = run.state.champion, fact.event
    best = run.state.evaluations[champion.evaluation].completed if champion else None
    if best and isinstance(measured, EvaluationCompleted) and "validation" in measured.scores:
        before, now = best.scores["validation"].mean, measured.scores["validation"].mean
        if now < before - 0.05:
            yield RegressionFound(fact.envelope.id, before, now)

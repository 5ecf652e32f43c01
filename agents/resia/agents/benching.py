"""Rollouts whose answers a kernel-bench judges: submit, wait, score. The bench's own failures are never scored.

The same kernel on the same cases is one submission of a run, so whoever asks for it again has the recorded verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

from resia.domains.base import Answer, Domain, Score, rendered, sound
from resia.domains.benched import Benched, Outcome, Submission
from resia.events import Blobs, ControlScore, KernelBenchmarked, KernelSubmitted, Split
from resia.events.errors import BoundaryError, boundary
from resia.replay.state import RunState, broke

from .ports import Json, Line

SOURCE_MEDIA = "text/x-python"
TRIES = 3  # times in all that the bench is asked where its answer is no word on the kernel
Answered = Callable[[RunState], Outcome | None]
SPLITS: tuple[Split, ...] = ("search", "validation", "test")


class Bench(NamedTuple):
    """A domain's answers, judged over a line. `retry` counts how often the request under way had been lost before: so
    often again a bench that broke is asked anew."""

    domain: Benched
    line: Line
    blobs: Blobs
    retry: int = 0

    def score(self, item: str, answer: Answer, who: str) -> Score:
        """What `answer` is worth on `item`; `who` asks. Raises BoundaryError where the bench broke, or the domain."""
        with boundary(BoundaryError, f"submitting an answer on item '{item}' failed"):
            own, plain = self.domain.submission(item, answer), self.domain.yardstick(item)
        outcome = self._judged(own, who)
        beside = self._measured(plain, who) if isinstance(outcome, KernelBenchmarked) else None
        with boundary(BoundaryError, f"scoring item '{item}' failed"):
            score = self.domain.score_benched(item, answer, outcome, beside)
        return sound(item, (answer,), score)

    def attempt(self, item: str, answer: Answer, who: str) -> dict[str, Json]:
        """The verdict as a tool gives it: whether the answer is valid, and what is wrong if not."""
        score = self.score(item, answer, who)
        return {"ok": score.failure is None, "failure": score.failure or "", "detail": score.detail}

    def controls(self) -> tuple[ControlScore, ...]:
        """The reference kernels on every split."""
        return tuple(
            self._control(reference.name, split, reference.answer)
            for split in SPLITS
            for reference in self.domain.spec.references
        )

    def _control(self, name: str, split: Split, answer: Answer) -> ControlScore:
        scores = [self.score(item.id, answer, f"control {name}") for item in self.domain.items(split)]
        names = sorted({metric for score in scores for metric in score.metrics})
        held = {metric: [s.metrics[metric] for s in scores if metric in s.metrics] for metric in names}
        metrics = {metric: round(sum(values) / len(values), 6) for metric, values in held.items()}
        mean = round(sum(score.reward for score in scores) / len(scores), 6)
        return ControlScore(name, split, mean, len(scores), metrics, rendered(self.domain, answer))

    def _measured(self, submission: Submission, who: str) -> KernelBenchmarked:
        outcome = self._judged(submission, who, known_right=True)
        assert isinstance(outcome, KernelBenchmarked)  # a rejection of what is known to be right was no word on it
        return outcome

    def _judged(self, submission: Submission, who: str, known_right: bool = False) -> Outcome:
        blob = self.blobs.put(submission.source.encode(), SOURCE_MEDIA)
        config, last, why = dict(submission.config), TRIES * (self.retry + 1), ""
        for attempt in range(last):
            asked = KernelSubmitted(who, blob, config, submission.protocol, submission.suite, attempt)
            answered: Answered = partial(_outcome, key=asked.key, attempt=attempt)
            outcome = cast(Outcome, self.line.ask(asked, answered))
            if isinstance(outcome, KernelBenchmarked) or not (known_right or broke(outcome)):
                return outcome
            why = f"{outcome.failure}: {outcome.detail}"
        what = "a kernel that is known to be right" if known_right else "a kernel"
        raise BoundaryError(f"the kernel-bench had no verdict on {what} in {last} attempts, at last {why}")


def _outcome(state: RunState, key: str, attempt: int) -> Outcome | None:
    kernel = state.kernels.get(key)
    return kernel.outcomes.get(attempt) if kernel else None


def bench_of(domain: Domain, line: Line | None, blobs: Blobs, retry: int = 0) -> Bench | None:
    """What judges the answers of a `Benched` domain; None for any other. Raises BoundaryError without a line."""
    if not isinstance(domain, Benched):
        return None
    if line is None:
        raise BoundaryError(f"answers of domain '{domain.spec.name}' need a kernel-bench, and nothing here reaches one")
    return Bench(domain, line, blobs, retry)

"""Answers that are kernels: what is submitted to the kernel-bench, and what its verdict is worth.

The domain names what is judged and scores the recorded outcome; it runs nothing and knows nothing of who judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from resia.events import KernelBenchmarked, KernelProtocol, KernelRejected

from .base import Answer, Domain, Score, Value

Outcome = KernelBenchmarked | KernelRejected


class Submission(NamedTuple):
    """A kernel file with its launch configuration, the protocol of the clock, and the name of the cases."""

    source: str
    config: Mapping[str, Value]
    protocol: KernelProtocol
    suite: str


@runtime_checkable
class Benched(Domain, Protocol):
    """A domain whose answers another role judges. `score` and `controls` are not asked of it in a run."""

    def submission(self, item: str, answer: Answer) -> Submission:
        """What `answer` is on `item`, as the bench takes it."""
        ...

    def yardstick(self, item: str) -> Submission:
        """A kernel that is known to be right, which an answer is measured beside; to reject it is the bench's fault."""
        ...

    def score_benched(self, item: str, answer: Answer, outcome: Outcome, beside: KernelBenchmarked | None) -> Score:
        """What an outcome is worth; `beside` is the yardstick's, None where the answer was rejected.

        Never asked of an outcome that says nothing about the kernel. Raises BoundaryError where the two do not compare.
        """
        ...

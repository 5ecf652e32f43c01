"""TriMul whose answers are kernels: an item is a suite of cases, and the kernel-bench says how fast a kernel is on it.

Implements `resia.domains.benched.Benched`. Runs nothing: a score is made of a recorded outcome, so equal outcomes have
equal scores wherever they are scored.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from resia.domains import form
from resia.domains.base import Answer, Item, Score, TaskSpec, Value
from resia.domains.benched import Outcome, Submission
from resia.events import (
    ControlScore,
    Failure,
    KernelBenchmarked,
    KernelProtocol,
    KernelRejected,
    Split,
)
from resia.events.errors import BoundaryError, UnknownName
from resia.events.ids import sha256

from .cases import Suite, item_suite, reward
from .domain import FASTER, SPLITS, prompt
from .kernel_form import PLAIN_SOURCE, Template, launch_spec, source_spec

# What the bench rejects a kernel for, as the loop counts it: a kernel that does not run, one that computes something
# else or whose time is not to be believed, one that takes too long, and one that takes what it may not.
FAILURES: Mapping[str, Failure] = {
    "compile": "tool_error",
    "raised": "tool_error",
    "crashed": "tool_error",
    "type": "wrong",
    "dtype": "wrong",
    "shape": "wrong",
    "wrong": "wrong",
    "mutated": "wrong",
    "swallowed": "wrong",
    "quarantined": "wrong",
    "timeout": "timeout",
    "memory": "sandbox_violation",
    "thread": "sandbox_violation",
    "sandbox_violation": "sandbox_violation",
}


class Kernels:
    """Implements `resia.domains.benched.Benched`; see there. Without a template an answer is a whole source."""

    def __init__(
        self, sizes: Mapping[Split, int], size: str, protocol: KernelProtocol, template: Template | None
    ) -> None:
        self._protocol, self._template = protocol, template
        self.spec: TaskSpec = launch_spec(template.parameters) if template else source_spec()
        self._suites: dict[Split, dict[str, Suite]] = {
            split: {f"{split}-{index:02d}": item_suite(size, split, index) for index in range(sizes[split])}
            for split in SPLITS
        }
        made = [dict(sizes), size, protocol, PLAIN_SOURCE, template.source if template else ""]
        self.digest: str = sha256(b"trimul kernels 1" + msgspec.json.encode(made, order="deterministic"))

    def items(self, split: Split) -> tuple[Item, ...]:
        return tuple(Item(id_, split, prompt(suite.timed[0])) for id_, suite in self._suites[split].items())

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return form.parse(self.spec.parameters, request)

    def render(self, answer: Answer) -> str:
        return form.render(self.spec.parameters, answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Nothing here can: raises BoundaryError."""
        del answer
        raise BoundaryError(f"a kernel for item '{item}' is scored by a kernel-bench, in a run")

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """None: in a run the references are measured by the bench."""
        del budget, seed
        return ()

    def submission(self, item: str, answer: Answer) -> Submission:
        """Raises ValueError for no valid answer and UnknownName for no item."""
        parsed = self.parse(answer)
        if self._template is None:
            return Submission(str(parsed["source"]), {}, self._protocol, self._suite(item).name)
        return Submission(self._template.source, parsed, self._protocol, self._suite(item).name)

    def yardstick(self, item: str) -> Submission:
        """The plain kernel on the same cases."""
        return Submission(PLAIN_SOURCE, {}, self._protocol, self._suite(item).name)

    def score_benched(self, item: str, answer: Answer, outcome: Outcome, beside: KernelBenchmarked | None) -> Score:
        """Reward plain / (plain + own) of the two times; success: at least 5% faster than the plain kernel."""
        del answer
        if isinstance(outcome, KernelRejected):
            return rejected(outcome)
        if beside is None or beside.device != outcome.device:
            where = "nowhere" if beside is None else f"on {beside.device}"
            raise BoundaryError(
                f"a kernel was timed on {outcome.device}, the plain one {where}: let benches of one device serve a run"
            )
        return measured(item, outcome, beside)

    def _suite(self, item: str) -> Suite:
        known = {id_: suite for suites in self._suites.values() for id_, suite in suites.items()}
        if item not in known:
            raise UnknownName("item", item, known)
        return known[item]


def rejected(outcome: KernelRejected) -> Score:
    """A kernel that was rejected, as what it is. Raises BoundaryError for a rejection that is no word on it."""
    if outcome.failure not in FAILURES:
        raise BoundaryError(f"the bench names a failure that is not known, '{outcome.failure}': {outcome.detail}")
    detail = f"{outcome.failure} ({outcome.stage}): {outcome.detail}"
    return Score(0.0, False, FAILURES[outcome.failure], detail, {"valid": 0.0})


def measured(item: str, outcome: KernelBenchmarked, beside: KernelBenchmarked) -> Score:
    """Two times as a score. `reward_1500` is the published 1500/us, which has no upper end and cannot be the reward."""
    us, plain_us = outcome.geomean_us, beside.geomean_us
    metrics = {
        "us": us,
        "plain_us": plain_us,
        "reward_1500": round(reward(us), 6),
        "ideal_us": outcome.floor_us,
        "valid": 1.0,
    }
    detail = f"{item}: {us:.0f} us, plain {plain_us:.0f} us ({outcome.protocol}, {outcome.device})"
    return Score(round(plain_us / (plain_us + us), 6), us < FASTER * plain_us, None, detail, metrics)

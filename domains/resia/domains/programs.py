"""Answers that are programs: what is to be run, who runs it, and what its output is worth.

The domain says what is run and scores what comes out; it never runs a program itself, for generated code runs in a
sandbox alone, which the runtime hands in as a `ProgramRunner`. Knows nothing of how that one locks it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from resia.events import Failure
from resia.events.errors import BoundaryError, SandboxError, boundary

from .base import Answer, Domain, Score, scored, sound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Output = NDArray[np.float64]

_FAILURES: Mapping[str, Failure] = {
    "wrong": "wrong",
    "tool_error": "tool_error",
    "timeout": "timeout",
    "sandbox_violation": "sandbox_violation",
}


class ProgramLimits(msgspec.Struct, frozen=True):
    """What one call may use: wall and CPU seconds, and bytes of memory beyond what the libraries need. One thread."""

    wall_s: float = 60.0
    cpu_s: int = 20
    memory_bytes: int = 2 << 30


class Program(NamedTuple):
    """A call to make: `entry(*arguments.values())` of `source`, which has to return an array of `shape`.

    `arguments` are numpy arrays of numbers or values that JSON can hold: all that the program's process ever sees of
    the item. `seed` seeds `random` and `numpy.random` before the call.
    """

    source: str
    entry: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    seed: int = 0
    limits: ProgramLimits = ProgramLimits()


class ProgramRunner(Protocol):
    """Runs programs where they reach nothing but their arguments."""

    @property
    def tier(self) -> str:
        """How they are locked in."""
        ...

    def run(self, program: Program) -> Output:
        """What it returned, float64 of the shape that was asked for, and any values.

        Raises SandboxError whose `failure` is wrong (no array of numbers, or another shape), tool_error (it does not
        compile, has no `entry`, raised, ended), timeout, or sandbox_violation (a forbidden call, too much memory);
        BoundaryError when the runner itself broke.
        """
        ...


@runtime_checkable
class Programmed(Domain, Protocol):
    """A domain whose answers are programs. `score` is not asked of it."""

    def program(self, item: str, answer: Answer) -> Program:
        """The call that `answer` is on `item`. Neither its arguments nor its seed may tell gold."""
        ...

    def fault(self, item: str, output: Output) -> str:
        """What makes an output no valid answer, as far as the item's own arguments tell; empty where nothing does."""
        ...

    def score_output(self, item: str, output: Output) -> Score: ...


VALID = {"ok": True, "failure": "", "detail": "it ran, and its output is a valid answer"}
Runners = Callable[[], ProgramRunner]


def no_programs() -> ProgramRunner:
    """What a process has that is given nothing to run programs with. Raises BoundaryError."""
    raise BoundaryError("nothing here runs programs")


def worth(domain: Domain, item: str, answers: Sequence[Answer], runners: Runners) -> Score:
    """`base.scored` of any domain: where the answers are programs, by running the one that is handed in."""
    if not isinstance(domain, Programmed):
        return scored(domain, item, answers)
    return sound(item, answers, _run_and_score(domain, item, answers[0], runners))


def _run_and_score(domain: Programmed, item: str, answer: Answer, runners: Runners) -> Score:
    """A program's failure as what it is, else what its output is worth. Raises BoundaryError where the runner or the
    domain broke."""
    try:
        output = _output(domain, item, answer, runners)
    except SandboxError as cause:
        return Score(0.0, False, _FAILURES[cause.failure], told(cause), {})
    with boundary(BoundaryError, f"scoring item '{item}' failed"):
        return domain.score_output(item, output)


def attempted(domain: Programmed, item: str, answer: Answer, runners: Runners) -> dict[str, Any]:
    """Whether a program gives a valid answer on `item`, and what is wrong if not; nothing that is held out has part in
    it."""
    try:
        output = _output(domain, item, answer, runners)
    except SandboxError as cause:
        return {"ok": False, "failure": cause.failure, "detail": told(cause)}
    with boundary(BoundaryError, f"checking an output on item '{item}' failed"):
        fault = domain.fault(item, output)
    if fault:
        return {"ok": False, "failure": "wrong", "detail": fault}
    return dict(VALID)


def _output(domain: Programmed, item: str, answer: Answer, runners: Runners) -> Output:
    with boundary(BoundaryError, f"running a program on item '{item}' failed"):
        return runners().run(domain.program(item, answer))


def told(cause: SandboxError) -> str:
    """A failure with the limit that was reached, if one was, as its first word."""
    return f"{cause.limit}: {cause}" if cause.limit else str(cause)

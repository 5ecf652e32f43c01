"""Is what a batch of calls gave right? Decided here, on inputs made here, by memory read here.

Verification compares every element. The calls that are timed are compared on a block of rows and columns that is drawn
anew for each and that the kernel cannot know, because a whole reference for each would take longer than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from resia.domains.trimul.criterion import Agreement, compare
from resia.domains.trimul.operator import Case, Floats, Indices, Inputs, draw, reference_block
from resia.domains.trimul.roofline import Device
from resia.events.errors import SandboxError
from resia.events.ids import seed_for

from .ports import Candidate, Ran

BLOCK = 16  # rows, and columns


class Maths(Protocol):
    """Where inputs are drawn and outputs compared with the reference in float64."""

    def draw(self, case: Case, seed: int) -> Inputs: ...

    def agreement(self, inputs: Inputs, output: Floats, rows: Indices, columns: Indices) -> Agreement:
        """How `output` (B, N, N, C) compares at i in `rows` and j in `columns`."""
        ...


class HostMaths:
    """On the processor. Implements `Maths`."""

    def draw(self, case: Case, seed: int) -> Inputs:
        return draw(case, seed)

    def agreement(self, inputs: Inputs, output: Floats, rows: Indices, columns: Indices) -> Agreement:
        return compare(output[:, rows][:, :, columns], reference_block(inputs, rows, columns))


HOST = HostMaths()


def maths_for(device: Device) -> Maths:
    """On a GPU where kernels are judged on one: the published cases would take a processor most of an hour a kernel."""
    if device.kind == "cpu":
        return HOST
    from .torch_maths import TorchMaths

    return TorchMaths(device.kind)


def inputs(maths: Maths, case: Case, seed: int, *name: str | int) -> Inputs:
    """Inputs that no call has seen: drawn from the seed and what they are for."""
    return maths.draw(case, seed_for(seed, "kernel", case.name, *name))


def verify(candidate: Candidate, case: Case, seed: int, maths: Maths = HOST) -> None:
    """Two calls of one batch on inputs of their own, every element. Raises SandboxError for what is wrong."""
    calls = [inputs(maths, case, seed, "verify", number) for number in range(2)]
    ran = candidate.run(calls, watch=True)
    _require_untouched(case, calls, ran)
    every = np.arange(case.n)
    for call, output in zip(calls, ran.outputs, strict=True):
        agreement = maths.agreement(call, output, every, every)
        if not agreement.right:
            raise SandboxError("wrong", f"case {case.name}: {agreement}")


def recheck(case: Case, calls: Sequence[Inputs], ran: Ran, seed: int, maths: Maths = HOST) -> None:
    """A block of every output. `seed` draws the blocks and must be new for each batch. Raises SandboxError."""
    _require_untouched(case, calls, ran)
    rng = np.random.default_rng([seed_for(seed, "block", case.name)])
    for number, (call, output) in enumerate(zip(calls, ran.outputs, strict=True)):
        rows, columns = (np.sort(rng.choice(case.n, min(BLOCK, case.n), replace=False)) for _ in range(2))
        agreement = maths.agreement(call, output, rows, columns)
        if not agreement.right:
            raise SandboxError("wrong", f"case {case.name}, timed call {number + 1} of {len(calls)}: {agreement}")


def _require_untouched(case: Case, calls: Sequence[Inputs], ran: Ran) -> None:
    for call, after in zip(calls, ran.after, strict=True):
        left = after.arrays()
        for name, array in call.arrays().items():
            if not np.array_equal(array, left[name]):
                raise SandboxError("mutated", f"case {case.name}: the kernel changed its input {name}")

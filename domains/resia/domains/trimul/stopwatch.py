"""Times the template on this machine's processor, in this process: it is resia's own code, an answer only sets it.

Each answer is checked on inputs of its own first. Times are the least of several calls, because whatever else runs
here only ever adds; the plain answer is timed in turn with each, so that both meet the same machine. Imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from resia.domains.base import Answer

from .criterion import compare
from .operator import Case, Inputs, draw, reference_block
from .template import custom_kernel

ROUNDS = 5
BLOCK = 16  # rows and columns of an output that are checked
Call = Callable[[], torch.Tensor]


class Timing(msgspec.Struct, frozen=True):
    """Microseconds of an answer and of the plain one beside it; `wrong` says how the output differs, or nothing."""

    us: float
    plain_us: float
    wrong: str = ""


class Stage(NamedTuple):
    """One case laid out: what is timed and what it must come to at `rows` and `columns`."""

    inputs: Inputs
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    columns: np.ndarray[tuple[int], np.dtype[np.int64]]
    expected: np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def lay_out(case: Case, seed: int) -> Stage:
    """Inputs from the seed, and the expected output at some rows and columns."""
    inputs, rng = draw(case, seed), np.random.default_rng([seed, 1])
    rows, columns = (np.sort(rng.choice(case.n, min(BLOCK, case.n), replace=False)) for _ in range(2))
    return Stage(inputs, rows, columns, reference_block(inputs, rows, columns))


def timed(stage: Stage, answer: Answer, plain: Answer, rounds: int = ROUNDS) -> Timing:
    """Check `answer`, then time it in turn with `plain`."""
    with torch.inference_mode():
        call, beside = _call(stage.inputs, answer), _call(stage.inputs, plain)
        output = call().numpy()[:, stage.rows][:, :, stage.columns]
        agreement = compare(output, stage.expected)
        beside()
        pairs = [(_us(call), _us(beside)) for _ in range(rounds)]
    us, plain_us = (round(min(times), 1) for times in zip(*pairs, strict=True))
    return Timing(us, plain_us, "" if agreement.right else str(agreement))


def _call(inputs: Inputs, answer: Mapping[str, str | int | float | bool]) -> Call:
    x, mask = torch.from_numpy(inputs.x), torch.from_numpy(inputs.mask)
    weights = {name: torch.from_numpy(value) for name, value in inputs.weights.items()}
    return lambda: custom_kernel(x, mask, weights, dict(answer))


def _us(call: Call) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1000

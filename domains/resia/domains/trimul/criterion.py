"""When an output is right: every element near the reference, the same dtype and shape, nothing that is no number."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from .operator import Doubles, Floats

ABSOLUTE = RELATIVE = 0.02
ROWS_AT_ONCE = 1 << 22  # elements, so that a large output needs no second copy


class Agreement(msgspec.Struct, frozen=True):
    """How an output compares. `worst` is the largest |difference| over its allowance: right is at most 1."""

    elements: int
    outside: int
    worst: float

    @property
    def right(self) -> bool:
        return self.outside == 0

    def __str__(self) -> str:
        share = self.outside / self.elements
        return f"{self.outside} of {self.elements} elements ({share:.2%}) out of tolerance, the worst {self.worst:.3g}x"


def compare(output: Floats, expected: Doubles) -> Agreement:
    """|output - expected| <= 0.02 + 0.02 |expected| for every element; NaN and infinity only where they are expected.

    Raises ValueError for another shape.
    """
    if output.shape != expected.shape:
        raise ValueError(f"an output of shape {output.shape} where {expected.shape} is expected")
    flat, target = output.reshape(-1), expected.reshape(-1)
    outside, worst = 0, 0.0
    for start in range(0, len(flat), ROWS_AT_ONCE):
        ratio = _over_allowance(flat[start : start + ROWS_AT_ONCE], target[start : start + ROWS_AT_ONCE])
        outside += int(np.count_nonzero(~(ratio <= 1.0)))
        worst = max(worst, float(np.nan_to_num(ratio, nan=math.inf, posinf=math.inf).max(initial=0.0)))
    return Agreement(len(flat), outside, worst)


def _over_allowance(output: Floats, expected: Doubles) -> Doubles:
    """|difference| / allowance; infinite where one of the two alone is no finite number."""
    finite = np.isfinite(expected) & np.isfinite(output)
    same = (np.isnan(expected) & np.isnan(output)) | (expected == output)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio: Doubles = np.abs(output - expected) / (ABSOLUTE + RELATIVE * np.abs(expected))
    return np.where(finite, ratio, np.where(same, 0.0, math.inf))

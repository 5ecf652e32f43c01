"""Inputs and the reference by torch, in float64, so that a GPU can do for itself what it is judged by.

The operator and the criterion once more, as `resia.domains.trimul` has them for the processor: the same laws, not the
same random numbers. It is never in the process of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from resia.domains.trimul.criterion import ABSOLUTE, RELATIVE, Agreement
from resia.domains.trimul.operator import (
    CAUCHY_SCALE,
    EPSILON,
    HIDDEN,
    PROJECTIONS,
    Case,
    Floats,
    Indices,
    Inputs,
    shapes,
)

ROWS = 32  # of one sample that are computed at a time


class TorchMaths:
    """Implements `resia.kernels.checking.Maths` on `device`, cuda or cpu."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def draw(self, case: Case, seed: int) -> Inputs:
        """See `resia.domains.trimul.operator.draw`."""
        generator = torch.Generator(self._device).manual_seed(seed)
        made = {name: self._array(name, shape, case, generator) for name, shape in shapes(case).items()}
        self._give_back()
        return Inputs(made.pop("x"), made.pop("mask"), made)

    def _array(self, name: str, shape: tuple[int, ...], case: Case, generator: torch.Generator) -> Floats:
        if name == "mask":
            values = torch.ones(shape, device=self._device)
            if case.masked:
                values.random_(0, 2, generator=generator)
        else:
            values = torch.randn(shape, generator=generator, device=self._device)
            if name == "x" and case.law == "cauchy":
                below = torch.randn(shape, generator=generator, device=self._device)
                values.div_(below.masked_fill_(below == 0, 1e-6)).mul_(CAUCHY_SCALE)
            elif name in PROJECTIONS:
                values.mul_(HIDDEN**-0.5)
            elif name == "out_proj":
                values.mul_(case.channels**-0.5)
        array: Floats = values.cpu().numpy()
        return array

    def agreement(self, inputs: Inputs, output: Floats, rows: Indices, columns: Indices) -> Agreement:
        """See `resia.kernels.checking.Maths`."""
        w = {name: self._double(value) for name, value in inputs.weights.items()}
        elements, outside, worst = 0, 0, 0.0
        for b, (x, mask) in enumerate(zip(inputs.x, inputs.mask, strict=True)):
            right = torch.cat([self._side(x, mask, some, w, "right") for some in _parts(columns)])
            right = right.permute(2, 1, 0).contiguous()  # (H, N, columns)
            for some in _parts(rows):
                left = self._side(x, mask, some, w, "left").permute(2, 0, 1).contiguous()
                expected = self._finished(torch.matmul(left, right), x, some, columns, w)
                ratio = _over_allowance(self._double(_at(output[b], some, columns)), expected)
                elements += ratio.numel()
                outside += int((ratio > 1.0).sum())
                worst = max(worst, float(ratio.max()))
        self._give_back()
        return Agreement(elements, outside, worst)

    def _side(self, x: Floats, mask: Floats, rows: Indices, w: Mapping[str, Tensor], side: str) -> Tensor:
        """L or R of one sample at some rows: (rows, N, H)."""
        y = _normal(self._double(_at(x, rows)), w["norm_weight"], w["norm_bias"])
        return (
            (y @ w[f"{side}_proj"].T)
            * self._double(_at(mask, rows))[..., None]
            * torch.sigmoid(y @ w[f"{side}_gate"].T)
        )

    def _finished(self, product: Tensor, x: Floats, rows: Indices, columns: Indices, w: Mapping[str, Tensor]) -> Tensor:
        """From O (H, rows, columns) to the output (rows, columns, C)."""
        y = _normal(self._double(_at(x, rows, columns)), w["norm_weight"], w["norm_bias"])
        hidden = _normal(product.permute(1, 2, 0), w["out_norm_weight"], w["out_norm_bias"])
        return (hidden * torch.sigmoid(y @ w["out_gate"].T)) @ w["out_proj"].T

    def _double(self, array: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device).double()

    def _give_back(self) -> None:
        """The kernel's process needs the memory of the device next."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _parts(indices: Indices) -> list[Indices]:
    return [indices[start : start + ROWS] for start in range(0, len(indices), ROWS)]


def _at(array: Floats, rows: Indices, columns: Indices | None = None) -> Floats:
    """`array` at these rows, and columns; a view where they follow one another, as when every element is compared: to
    copy gigabytes here takes longer than to compare them on a GPU."""
    found: Floats = array[_picked(rows)]
    return found if columns is None else found[:, _picked(columns)]


def _picked(indices: Indices) -> slice | Indices:
    return slice(indices[0], indices[-1] + 1) if (np.diff(indices) == 1).all() else indices


def _normal(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last axis, biased variance."""
    return torch.nn.functional.layer_norm(values, values.shape[-1:], weight, bias, EPSILON)


def _over_allowance(output: Tensor, expected: Tensor) -> Tensor:
    """|difference| / allowance; infinite where one of the two alone is no finite number."""
    ratio = (output - expected).abs() / (ABSOLUTE + RELATIVE * expected.abs())
    same = (output.isnan() & expected.isnan()) | (output == expected)
    return torch.where(output.isfinite() & expected.isfinite(), ratio, torch.where(same, 0.0, math.inf))

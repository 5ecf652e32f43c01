"""The operator, written from its mathematics: inputs drawn from a seed, and the output in float64.

    y = LN_C(x);  L = (y Wlp^T) mask sigmoid(y Wlg^T);  R likewise;  G = sigmoid(y Wog^T)
    O[b,i,j,h] = sum_k L[b,i,k,h] R[b,j,k,h];           out = (LN_H(O) G) Wto^T

Array names carry shapes: B batch, N sequence, C channels, H hidden. Knows nothing of what computes it fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Law = Literal["normal", "cauchy"]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

HIDDEN = 128
EPSILON = 1e-5
CAUCHY_SCALE = 2.0
PROJECTIONS = ("left_proj", "left_gate", "right_proj", "right_gate", "out_gate")  # each (H, C), applied to y


class Case(msgspec.Struct, frozen=True):
    """One shape and law of inputs: x is (batch, n, n, channels), mask (batch, n, n)."""

    n: int
    batch: int
    channels: int
    law: Law = "normal"
    masked: bool = False

    @property
    def name(self) -> str:
        """Such as `256/2/384-normal-masked`."""
        return f"{self.n}/{self.batch}/{self.channels}-{self.law}{'-masked' if self.masked else ''}"

    @property
    def x_bytes(self) -> int:
        """Size of x in float32, and of the output."""
        return 4 * self.batch * self.n * self.n * self.channels


class Inputs(NamedTuple):
    """What a kernel is given, all float32. `weights`: see `weight_shapes`."""

    x: Floats
    mask: Floats
    weights: Mapping[str, Floats]

    def arrays(self) -> dict[str, Floats]:
        """Every array under its name."""
        return {"x": self.x, "mask": self.mask, **self.weights}


def weight_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Shape of each weight: two LayerNorms, five projections (H, C), the output projection (C, H)."""
    return {
        "norm_weight": (channels,),
        "norm_bias": (channels,),
        **dict.fromkeys(PROJECTIONS, (HIDDEN, channels)),
        "out_norm_weight": (HIDDEN,),
        "out_norm_bias": (HIDDEN,),
        "out_proj": (channels, HIDDEN),
    }


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Shape of every array of `Inputs.arrays`, in its order."""
    square = (case.batch, case.n, case.n)
    return {"x": (*square, case.channels), "mask": square, **weight_shapes(case.channels)}


def draw(case: Case, seed: int) -> Inputs:
    """x is N(0,1) or Cauchy of scale 2, the mask ones or fair coins, LN parameters N(0,1), projections N(0,1)/sqrt(H),
    the output weight N(0,1)/sqrt(C)."""
    rng = np.random.default_rng(seed)
    shape = shapes(case)
    x = rng.standard_normal(shape["x"], dtype=np.float32)
    if case.law == "cauchy":  # the ratio of two normals; a zero below would be an infinity above
        below = rng.standard_normal(shape["x"], dtype=np.float32)
        np.divide(x, np.where(below == 0, np.float32(1e-6), below), out=x)
        x *= np.float32(CAUCHY_SCALE)
    mask = rng.integers(0, 2, shape["mask"]).astype(np.float32) if case.masked else np.ones(shape["mask"], np.float32)
    weights = {name: _weight(name, size, case, rng) for name, size in weight_shapes(case.channels).items()}
    return Inputs(x, mask, weights)


def _weight(name: str, size: tuple[int, ...], case: Case, rng: np.random.Generator) -> Floats:
    scale = HIDDEN**-0.5 if name in PROJECTIONS else case.channels**-0.5 if name == "out_proj" else 1.0
    return rng.standard_normal(size, dtype=np.float32) * np.float32(scale)


def reference(inputs: Inputs) -> Doubles:
    """The whole output (B, N, N, C) in float64."""
    every = np.arange(inputs.x.shape[1])
    return reference_block(inputs, every, every)


def reference_block(inputs: Inputs, rows: Indices, columns: Indices) -> Doubles:
    """The output at i in `rows` and j in `columns` (B, rows, columns, C) in float64.

    It needs x at those rows and columns alone, so a small block of a large output costs little.
    """
    x, mask, raw = inputs
    w = {name: value.astype(np.float64) for name, value in raw.items()}
    out: Doubles = np.empty((len(x), len(rows), len(columns), x.shape[3]))
    for b in range(len(x)):
        left = _side(x[b, rows], mask[b, rows], w, "left")
        right = _side(x[b, columns], mask[b, columns], w, "right")
        # (H, rows, N) by (H, N, columns): one product a hidden channel, of arrays that BLAS can read.
        products = np.matmul(
            np.ascontiguousarray(left.transpose(2, 0, 1)), np.ascontiguousarray(right.transpose(2, 1, 0))
        )
        product = np.ascontiguousarray(products.transpose(1, 2, 0))
        y = _normal(x[b][np.ix_(rows, columns)].astype(np.float64), w["norm_weight"], w["norm_bias"])
        gate = _sigmoid(y @ w["out_gate"].T)
        out[b] = (_normal(product, w["out_norm_weight"], w["out_norm_bias"]) * gate) @ w["out_proj"].T
    return out


def _side(x: Floats, mask: Floats, w: Mapping[str, Doubles], side: str) -> Doubles:
    """L or R at some rows: (rows, N, H)."""
    y = _normal(x.astype(np.float64), w["norm_weight"], w["norm_bias"])
    side_: Doubles = (y @ w[f"{side}_proj"].T) * mask[..., None] * _sigmoid(y @ w[f"{side}_gate"].T)
    return side_


def _normal(values: Doubles, weight: Doubles, bias: Doubles) -> Doubles:
    """LayerNorm over the last axis, biased variance."""
    centred = values - values.mean(-1, keepdims=True)
    scaled: Doubles = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return scaled * weight + bias


def _sigmoid(values: Doubles) -> Doubles:
    """Without overflow at either end."""
    half: Doubles = 0.5 * (1.0 + np.tanh(0.5 * values))
    return half

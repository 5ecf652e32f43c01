"""TriMul in Triton as three plain kernels: the baseline that every other kernel is measured from. A kernel file.

One program a row of x: LayerNorm and the five projections in float32, written as L, R and G. One program a tile of O for
each hidden channel. One program a row of O: LayerNorm, gate and output projection. Everything in float32. Stands alone:
torch and triton, nothing of resia.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EPSILON = 1e-5
NAMES = ("left_proj", "left_gate", "right_proj", "right_gate", "out_gate")
HIDDEN = 128


@triton.jit
def project(
    x, mask, norm_weight, norm_bias, joined, left, right, gate, C,
    BC: tl.constexpr, H: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    channels = tl.arange(0, BC)
    hidden = tl.arange(0, H)
    total = tl.zeros((BC,), dtype=tl.float32)
    for start in range(0, C, BC):
        total += tl.load(x + row * C + start + channels, mask=start + channels < C, other=0.0)
    mean = tl.sum(total, 0) / C
    squares = tl.zeros((BC,), dtype=tl.float32)
    for start in range(0, C, BC):
        inside = start + channels < C
        centred = tl.where(inside, tl.load(x + row * C + start + channels, mask=inside, other=0.0) - mean, 0.0)
        squares += centred * centred
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / C + eps)
    lp = tl.zeros((H,), dtype=tl.float32)
    lg = tl.zeros((H,), dtype=tl.float32)
    rp = tl.zeros((H,), dtype=tl.float32)
    rg = tl.zeros((H,), dtype=tl.float32)
    og = tl.zeros((H,), dtype=tl.float32)
    # In blocks of channels: a row at once would be a tile of 1,024 x 128, which takes the compiler minutes.
    for start in range(0, C, BC):
        c = start + channels
        inside = c < C
        y = (tl.load(x + row * C + c, mask=inside, other=0.0) - mean) * scale
        y = y * tl.load(norm_weight + c, mask=inside, other=0.0) + tl.load(norm_bias + c, mask=inside, other=0.0)
        at = joined + hidden[:, None] * C + c[None, :]
        lp += tl.sum(tl.load(at, mask=inside[None, :], other=0.0) * y[None, :], 1)
        lg += tl.sum(tl.load(at + H * C, mask=inside[None, :], other=0.0) * y[None, :], 1)
        rp += tl.sum(tl.load(at + 2 * H * C, mask=inside[None, :], other=0.0) * y[None, :], 1)
        rg += tl.sum(tl.load(at + 3 * H * C, mask=inside[None, :], other=0.0) * y[None, :], 1)
        og += tl.sum(tl.load(at + 4 * H * C, mask=inside[None, :], other=0.0) * y[None, :], 1)
    keep = tl.load(mask + row)
    tl.store(left + row * H + hidden, lp * keep * tl.sigmoid(lg))
    tl.store(right + row * H + hidden, rp * keep * tl.sigmoid(rg))
    tl.store(gate + row * H + hidden, tl.sigmoid(og))


@triton.jit
def multiply(left, right, out, N, H: tl.constexpr, T: tl.constexpr, K: tl.constexpr):
    i = tl.program_id(0) * T + tl.arange(0, T)
    j = tl.program_id(1) * T + tl.arange(0, T)
    batch = tl.program_id(2) // H
    h = tl.program_id(2) % H
    base = batch * N * N * H + h
    total = tl.zeros((T, T), dtype=tl.float32)
    for start in range(0, N, K):
        k = start + tl.arange(0, K)
        a = tl.load(
            left + base + (i[:, None] * N + k[None, :]) * H, mask=(i[:, None] < N) & (k[None, :] < N), other=0.0
        )
        b = tl.load(
            right + base + (j[None, :] * N + k[:, None]) * H, mask=(j[None, :] < N) & (k[:, None] < N), other=0.0
        )
        total += tl.dot(a, b, input_precision="ieee")
    tl.store(out + base + (i[:, None] * N + j[None, :]) * H, total, mask=(i[:, None] < N) & (j[None, :] < N))


@triton.jit
def finish(
    product, gate, weight, bias, matrix, out, C, BC: tl.constexpr, H: tl.constexpr, eps: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    hidden = tl.arange(0, H)
    values = tl.load(product + row * H + hidden)
    centred = values - tl.sum(values, 0) / H
    normal = centred / tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    normal = normal * tl.load(weight + hidden) + tl.load(bias + hidden)
    gated = normal * tl.load(gate + row * H + hidden)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        columns = tl.load(matrix + c[:, None] * H + hidden[None, :], mask=c[:, None] < C, other=0.0)
        tl.store(out + row * C + c, tl.sum(columns * gated[None, :], 1), mask=c < C)


def custom_kernel(x: Tensor, mask: Tensor, weights: dict[str, Tensor], config: dict[str, int]) -> Tensor:
    """See docs/kernels.md. `tile` and `block_k`: rows, columns and depth of a tile of the product; `block_c`: channels
    that a row is read by."""
    batch, n, _, channels = x.shape
    rows, tile, block_c = batch * n * n, int(config.get("tile", 32)), int(config.get("block_c", 64))
    x, mask = x.contiguous(), mask.contiguous()
    left, right, gate, product = (torch.empty((batch, n, n, HIDDEN), device=x.device) for _ in range(4))
    out = torch.empty_like(x)
    joined = torch.cat([weights[name] for name in NAMES])
    project[(rows,)](
        x, mask, weights["norm_weight"], weights["norm_bias"], joined, left, right, gate, channels, block_c,
        HIDDEN, EPSILON,
    )  # fmt: skip
    tiles = triton.cdiv(n, tile)
    multiply[(tiles, tiles, batch * HIDDEN)](left, right, product, n, HIDDEN, tile, int(config.get("block_k", 32)))
    finish[(rows,)](
        product, gate, weights["out_norm_weight"], weights["out_norm_bias"], weights["out_proj"], out, channels,
        block_c, HIDDEN, EPSILON,
    )  # fmt: skip
    return out

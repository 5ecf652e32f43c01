"""TriMul in Triton, fast: 16-bit operands, 32-bit statistics and accumulators, three kernels. A kernel file.

    project    a block of rows of x: mean and variance, then LayerNorm, projections, gates and mask in one launch; L and R
               are written as (B, H, N, N), so that the product below reads them along N, and G as (B N N, H)
    multiply   a batched product over B*H with float32 accumulators
    finish     LayerNorm over H, gate and output projection of a block of rows

The three outputs of a block of rows are three programs next to each other, which read x from L2 and keep their
accumulators in registers; LayerNorm's scale and shift are folded into the weights. O keeps 32 bits, because N products
of a Cauchy x can exceed what 16 hold. Every size of a block, warps and stages are in `config`; what is missing comes
from the table by device. Stands alone: torch and triton, nothing of resia.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EPSILON = 1e-5
HIDDEN = 128
NAMES = ("left_proj", "left_gate", "right_proj", "right_gate", "out_gate")
# Launch configurations by what the driver's name of the device contains; the first one is taken where none fits.
# Not tuned on these devices yet: sizes whose tiles fit the shared memory and registers of each.
BY_DEVICE = {
    "": {
        "rows": 64, "block_c": 32, "project_warps": 8, "project_stages": 2,
        "tile_m": 64, "tile_n": 64, "block_k": 32, "multiply_warps": 4, "multiply_stages": 3,
        "out_rows": 64, "out_c": 64, "finish_warps": 4, "finish_stages": 2,
    },
    "A100": {"tile_m": 128, "tile_n": 128, "multiply_warps": 8},
    "H100": {"rows": 64, "block_c": 64, "tile_m": 128, "tile_n": 128, "block_k": 64, "multiply_warps": 8},
    "H200": {"rows": 64, "block_c": 64, "tile_m": 128, "tile_n": 128, "block_k": 64, "multiply_warps": 8},
    "B200": {"rows": 128, "block_c": 64, "tile_m": 128, "tile_n": 256, "block_k": 64, "multiply_warps": 8},
}  # fmt: skip
# What a run of the form `launch` may choose, the default first; all sizes that a tile can have.
CHOICES = {
    "rows": [64, 32, 128],
    "block_c": [32, 64, 128],
    "project_warps": [8, 4],
    "project_stages": [2, 3],
    "tile_m": [64, 128, 32],
    "tile_n": [64, 128, 256],
    "block_k": [32, 64, 16],
    "multiply_warps": [4, 8],
    "multiply_stages": [3, 2, 4],
    "out_rows": [64, 32, 128],
    "out_c": [64, 32, 128],
    "finish_warps": [4, 8],
    "finish_stages": [2, 3],
}


@triton.jit
def project(
    x, mask, joined, shift, left, right, gate, M, NN, C,
    H: tl.constexpr, R: tl.constexpr, BC: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
    """Rows of x by the five (H, C) matrices, LN's scale in them; `shift` are their products with LN's bias."""
    which = tl.program_id(0) % 3  # 0 left, 1 right, 2 the output's gate
    rows = (tl.program_id(0) // 3).to(tl.int64) * R + tl.arange(0, R)  # in one axis: others end at 65,535 programs
    inside = rows < M
    hidden = tl.arange(0, H)
    first = 2 * which * H * C
    # x less its row's first value, so that a large mean does not swallow the spread.
    anchor = tl.load(x + rows * C, mask=inside, other=0.0)
    total = tl.zeros((R,), dtype=tl.float32)
    squares = tl.zeros((R,), dtype=tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        real = inside[:, None] & (c[None, :] < C)
        values = tl.load(x + rows[:, None] * C + c[None, :], mask=real, other=0.0)
        moved = tl.where(real, values - anchor[:, None], 0.0)
        total += tl.sum(moved, 1)
    mean = total / C
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        real = inside[:, None] & (c[None, :] < C)
        values = tl.load(x + rows[:, None] * C + c[None, :], mask=real, other=0.0)
        centred = tl.where(real, values - anchor[:, None] - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    scale = 1.0 / tl.sqrt(squares / C + eps)
    value = tl.zeros((R, H), dtype=tl.float32)
    gated = tl.zeros((R, H), dtype=tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        real = inside[:, None] & (c[None, :] < C)
        values = tl.load(x + rows[:, None] * C + c[None, :], mask=real, other=0.0)
        y = tl.where(real, (values - anchor[:, None] - mean[:, None]) * scale[:, None], 0.0).to(tl.float16)
        at = hidden[None, :] * C + c[:, None]
        weight = tl.load(joined + first + at, mask=c[:, None] < C, other=0.0)
        value += tl.dot(y, weight)
        if which < 2:
            other = tl.load(joined + first + H * C + at, mask=c[:, None] < C, other=0.0)
            gated += tl.dot(y, other)
    value += tl.load(shift + 2 * which * H + hidden)[None, :]
    if which == 2:
        tl.store(gate + rows[:, None] * H + hidden[None, :], tl.sigmoid(value).to(tl.float16), mask=inside[:, None])
    else:
        gated += tl.load(shift + (2 * which + 1) * H + hidden)[None, :]
        keep = tl.load(mask + rows, mask=inside, other=0.0)
        made = (value * keep[:, None] * tl.sigmoid(gated)).to(tl.float16)
        place = (rows // NN)[:, None] * H * NN + hidden[None, :] * NN + (rows % NN)[:, None]
        if which == 0:
            tl.store(left + place, made, mask=inside[:, None])
        else:
            tl.store(right + place, made, mask=inside[:, None])


@triton.jit
def multiply(left, right, out, N, TM: tl.constexpr, TN: tl.constexpr, K: tl.constexpr):
    """O[h] = L[h] R[h]^T, tiles of one hidden channel next to each other so that they share its operands in L2."""
    across = tl.cdiv(N, TN)
    i = tl.program_id(0) // across * TM + tl.arange(0, TM)
    j = tl.program_id(0) % across * TN + tl.arange(0, TN)
    base = tl.program_id(1).to(tl.int64) * N * N
    total = tl.zeros((TM, TN), dtype=tl.float32)
    for start in range(0, N, K):
        k = start + tl.arange(0, K)
        a = tl.load(left + base + i[:, None] * N + k[None, :], mask=(i[:, None] < N) & (k[None, :] < N), other=0.0)
        b = tl.load(right + base + j[None, :] * N + k[:, None], mask=(j[None, :] < N) & (k[:, None] < N), other=0.0)
        total += tl.dot(a, b)
    real = (i[:, None] < N) & (j[None, :] < N)
    tl.store(out + base + i[:, None] * N + j[None, :], total.to(out.dtype.element_ty), mask=real)


@triton.jit
def finish(
    product, gate, weight, bias, matrix, out, M, NN, C,
    H: tl.constexpr, R: tl.constexpr, BC: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    inside = rows < M
    hidden = tl.arange(0, H)
    place = (rows // NN)[:, None] * H * NN + hidden[None, :] * NN + (rows % NN)[:, None]
    values = tl.load(product + place, mask=inside[:, None], other=0.0).to(tl.float32)
    centred = values - (tl.sum(values, 1) / H)[:, None]
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / H + eps)
    normal = centred * scale[:, None] * tl.load(weight + hidden)[None, :] + tl.load(bias + hidden)[None, :]
    open_ = tl.load(gate + rows[:, None] * H + hidden[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    gated = (normal * open_).to(tl.float16)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        columns = tl.load(matrix + c[None, :] * H + hidden[:, None], mask=c[None, :] < C, other=0.0)
        made = tl.dot(gated, columns)
        tl.store(out + rows[:, None] * C + c[None, :], made, mask=inside[:, None] & (c[None, :] < C))


def launch_config(device_name: str, config: dict[str, int]) -> dict[str, int]:
    """The table's configuration for the device, with what `config` says in its place."""
    known = next((sizes for name, sizes in BY_DEVICE.items() if name and name in device_name), {})
    sizes = {**BY_DEVICE[""], **known}
    return {name: int(config.get(name, size)) for name, size in sizes.items()}


def custom_kernel(x: Tensor, mask: Tensor, weights: dict[str, Tensor], config: dict[str, int]) -> Tensor:
    """See docs/kernels.md. Any device that Triton compiles for."""
    batch, n, _, channels = x.shape
    name = torch.cuda.get_device_name(x.device) if x.is_cuda else ""
    size, rows = launch_config(name, config), batch * n * n
    x, mask = x.contiguous(), mask.contiguous()
    joined = torch.cat([weights[name] for name in NAMES])
    shift = joined @ weights["norm_bias"]
    folded = (joined * weights["norm_weight"]).half()
    half = {"device": x.device, "dtype": torch.float16}
    left, right = (torch.empty((batch, HIDDEN, n, n), **half) for _ in range(2))
    gate, out = torch.empty((rows, HIDDEN), **half), torch.empty_like(x)
    product = torch.empty((batch, HIDDEN, n, n), device=x.device)
    project[(3 * triton.cdiv(rows, size["rows"]),)](
        x, mask, folded, shift, left, right, gate, rows, n * n, channels, HIDDEN, size["rows"], size["block_c"],
        EPSILON, num_warps=size["project_warps"], num_stages=size["project_stages"],
    )  # fmt: skip
    tiles = triton.cdiv(n, size["tile_m"]) * triton.cdiv(n, size["tile_n"])
    multiply[(tiles, batch * HIDDEN)](
        left, right, product, n, size["tile_m"], size["tile_n"], size["block_k"],
        num_warps=size["multiply_warps"], num_stages=size["multiply_stages"],
    )  # fmt: skip
    finish[(triton.cdiv(rows, size["out_rows"]),)](
        product, gate, weights["out_norm_weight"], weights["out_norm_bias"], weights["out_proj"].half(), out, rows, n * n,
        channels, HIDDEN, size["out_rows"], size["out_c"], EPSILON,
        num_warps=size["finish_warps"], num_stages=size["finish_stages"],
    )  # fmt: skip
    return out

"""TriMul in plain torch, for a processor: the kernel file behind the tool `launch`.

A kernel file stands alone: it defines custom_kernel(x, mask, weights, config) and imports nothing of resia. Every
choice is in `config`; a missing one is the plainest.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

EPSILON = 1e-5
NAMES = ("left_proj", "left_gate", "right_proj", "right_gate", "out_gate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Choice = str | int | float | bool


def custom_kernel(x: Tensor, mask: Tensor, weights: dict[str, Tensor], config: dict[str, Choice]) -> Tensor:
    """x (B, N, N, C), mask (B, N, N), both float32; the output is (B, N, N, C) in float32.

    fuse: one product for the five projections. gemm: `heads` products of (N, N), or `einsum` over the last axis.
    heads: hidden channels in one batched product. rows: rows of x that are projected at a time, 0 for all.
    inplace: gates and mask overwrite. dtype: of the operands of every product.
    """
    dtype = DTYPES[str(config.get("dtype", "fp32"))]
    left, right, gate = _projected(x, mask, weights, config, dtype)
    product = _product(left, right, config)
    hidden = layer_norm(
        product.float(), product.shape[-1:], weights["out_norm_weight"], weights["out_norm_bias"], EPSILON
    )
    gated = hidden.mul_(gate) if config.get("inplace") else hidden * gate
    return (gated.to(dtype) @ weights["out_proj"].to(dtype).T).float()


def _projected(
    x: Tensor, mask: Tensor, weights: dict[str, Tensor], config: dict[str, Choice], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """L, R and G, each (B, N, N, H)."""
    matrices = [weights[name].to(dtype) for name in NAMES]
    joined = torch.cat(matrices) if config.get("fuse") else None
    step = int(config.get("rows", 0)) or x.shape[1]
    parts = [
        _gated(x[:, start : start + step], mask[:, start : start + step, :, None], weights, matrices, joined, config)
        for start in range(0, x.shape[1], step)
    ]
    left, right, gate = (torch.cat(part, 1) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
    return left, right, gate


def _gated(
    x: Tensor,
    mask: Tensor,
    weights: dict[str, Tensor],
    matrices: list[Tensor],
    joined: Tensor | None,
    config: dict[str, Choice],
) -> tuple[Tensor, Tensor, Tensor]:
    y = layer_norm(x, x.shape[-1:], weights["norm_weight"], weights["norm_bias"], EPSILON).to(matrices[0].dtype)
    made = [y @ matrix.T for matrix in matrices] if joined is None else list((y @ joined.T).chunk(len(matrices), -1))
    left, left_gate, right, right_gate, gate = made
    mask = mask.to(left.dtype)
    if config.get("inplace"):
        left = left.mul_(left_gate.sigmoid_()).mul_(mask)
        right = right.mul_(right_gate.sigmoid_()).mul_(mask)
        return left, right, gate.sigmoid_().float()
    return left * mask * left_gate.sigmoid(), right * mask * right_gate.sigmoid(), gate.sigmoid().float()


def _product(left: Tensor, right: Tensor, config: dict[str, Choice]) -> Tensor:
    """O (B, N, N, H)."""
    if config.get("gemm", "einsum") == "einsum":
        return torch.einsum("bikh,bjkh->bijh", left, right)
    step = int(config.get("heads", left.shape[-1]))
    parts = []
    for start in range(0, left.shape[-1], step):
        some = slice(start, start + step)
        a, b = left[..., some].permute(0, 3, 1, 2), right[..., some].permute(0, 3, 2, 1)
        parts.append(torch.matmul(a.contiguous(), b.contiguous()))
    return torch.cat(parts, 1).permute(0, 2, 3, 1) if len(parts) > 1 else parts[0].permute(0, 2, 3, 1)

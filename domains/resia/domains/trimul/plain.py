"""TriMul as it is written, in float32: the kernel file that a run begins from and measures others beside."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def custom_kernel(x: Tensor, mask: Tensor, weights: dict[str, Tensor], config: dict[str, object]) -> Tensor:
    del config
    y = layer_norm(x, x.shape[-1:], weights["norm_weight"], weights["norm_bias"], 1e-5)
    mask = mask[..., None]
    left = (y @ weights["left_proj"].T) * mask * torch.sigmoid(y @ weights["left_gate"].T)
    right = (y @ weights["right_proj"].T) * mask * torch.sigmoid(y @ weights["right_gate"].T)
    gate = torch.sigmoid(y @ weights["out_gate"].T)
    product = torch.einsum("bikh,bjkh->bijh", left, right)
    hidden = layer_norm(product, product.shape[-1:], weights["out_norm_weight"], weights["out_norm_bias"], 1e-5)
    return (hidden * gate) @ weights["out_proj"].T

"""AdamW over the adapter's weights and its state as one safetensors file.

Constant learning rate, no weight decay: an adapter starts as the identity and is pulled nowhere but by the data.
Collaborators: rounds steps it; the state travels between rounds as a blob. Knows nothing of objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from resia.events.settings import TrainingSettings

from . import tensorfile

if TYPE_CHECKING:
    import torch

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.0
STATE = ("exp_avg", "exp_avg_sq", "step")
WHAT = "the optimiser state"


class OptimizerInfo(msgspec.Struct, frozen=True):
    kind: str = "adamw"


def adamw(weights: Mapping[str, torch.Tensor], settings: TrainingSettings) -> Any:
    """A fresh `torch.optim.AdamW` over `weights` in the order of their names."""
    import torch

    parameters = [weights[name] for name in sorted(weights)]
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, foreach=False
    )


def encode_optimizer(optimizer: Any, weights: Mapping[str, torch.Tensor]) -> bytes:
    """The moments and step counts of every weight, after at least one step."""
    tensors = {f"{name}.{key}": optimizer.state[weights[name]][key] for name in weights for key in STATE}
    return tensorfile.encode(tensors, OptimizerInfo())


def load_optimizer(optimizer: Any, weights: Mapping[str, torch.Tensor], data: bytes) -> None:
    """Continue from the state in `data`; raises TrainerError when it belongs to other weights."""
    import torch

    tensorfile.describe(data, OptimizerInfo, WHAT)
    state = {
        name: {key: torch.zeros(()) if key == "step" else torch.zeros_like(weight) for key in STATE}
        for name, weight in weights.items()
    }
    targets = {f"{name}.{key}": tensor for name, parts in state.items() for key, tensor in parts.items()}
    tensorfile.copy_into(targets, data, WHAT)
    for name, weight in weights.items():
        optimizer.state[weight] = state[name]

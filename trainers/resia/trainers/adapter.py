"""The adapter file: LoRA weights as one safetensors file whose bytes depend on the weights alone.

Tensor names are those of `peft.get_peft_model_state_dict`. PPO's value head travels in the same file under names of its
own, which sampling does not need: engines of this project pass over them, and a file for others is written without.
Collaborators: policy holds the weights, the caller stores the bytes as a blob. Needs no PEFT itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from resia.events.errors import TrainerError

from . import tensorfile

if TYPE_CHECKING:
    import torch

WHAT = "the adapter"
# Names of the value head's tensors, shapes (1, hidden) and (1,).
VALUE_WEIGHT, VALUE_BIAS = "value_head.weight", "value_head.bias"
VALUE_HEAD = frozenset({VALUE_WEIGHT, VALUE_BIAS})


class AdapterInfo(msgspec.Struct, frozen=True):
    """What the weights fit: rank and alpha of LoRA, sorted names of the adapted linear layers, digest of the base."""

    rank: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    base_digest: str


def encode_adapter(weights: Mapping[str, torch.Tensor], info: AdapterInfo) -> bytes:
    """One safetensors file; equal weights and info give equal bytes."""
    return tensorfile.encode(weights, info)


def adapter_info(data: bytes) -> AdapterInfo:
    """What an adapter file says of itself; raises TrainerError when it is not one of ours."""
    return tensorfile.describe(data, AdapterInfo, WHAT)


def load_adapter(weights: Mapping[str, torch.Tensor], info: AdapterInfo, data: bytes) -> None:
    """Copy the file's weights into `weights`. Raises TrainerError, with nothing written, when it is of another base,
    rank, alpha or set of layers. A value head that only one side has is left alone."""
    found = adapter_info(data)
    for name in ("base_digest", "rank", "lora_alpha", "target_modules"):
        theirs, ours = getattr(found, name), getattr(info, name)
        if theirs != ours:
            raise TrainerError(f"{WHAT} has {name} {theirs}, but this policy has {ours}")
    tensorfile.copy_into(weights, data, WHAT, optional=VALUE_HEAD)


def without_value_head(data: bytes) -> bytes:
    """The file of the LoRA weights alone; the same bytes where there is no value head."""
    info, tensors = adapter_info(data), tensorfile.tensors_of(data, WHAT)
    if VALUE_HEAD.isdisjoint(tensors):
        return data
    return encode_adapter({name: tensor for name, tensor in tensors.items() if name not in VALUE_HEAD}, info)


def export_peft(data: bytes, folder: Path) -> None:
    """Write `adapter_model.safetensors` (the LoRA weights) and `adapter_config.json` into `folder`, which
    `peft.PeftModel.from_pretrained` and vLLM load."""
    info = adapter_info(data)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": info.rank,
        "lora_alpha": info.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": info.target_modules,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(without_value_head(data))
    text = msgspec.json.format(msgspec.json.encode(config, order="deterministic"), indent=2)
    (folder / "adapter_config.json").write_bytes(text + b"\n")

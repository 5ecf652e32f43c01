"""Adapters over one loaded base model: read, check, switch on and off without reloading anything.

In float32 an adapter is folded into the weights, W + (alpha / r) B A (Hu et al. 2021, arXiv:2106.09685, eq. 3), so
decoding costs what the base costs; the base tensors are kept aside and put back as they were, bit for bit. In a lower
precision folding would round small updates away, so there the low-rank product is added to each layer's output.
The file is what `resia.trainers.adapter` writes. Knows nothing of how it was trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import safe_open

from resia.events.errors import ModelError, boundary
from resia.trainers.adapter import AdapterInfo
from resia.trainers.tensorfile import KEY

KEY_PREFIX = "base_model.model."
KEEP_LOADED = 2


class Factors(NamedTuple):
    """One layer's update, B A, before scaling."""

    A_R_I: torch.Tensor
    B_O_R: torch.Tensor


class Lora(NamedTuple):
    scale: float
    layers: dict[str, Factors]


def read_lora(path: Path, linears: Mapping[str, Any], base_digest: str) -> Lora:
    """The adapter in `path` for the layers `linears` of the base with `base_digest`, in float32.

    Entries outside the adapted layers (a value head, say) are left alone. Raises ModelError naming the file when it
    is unreadable, was trained on another base, or does not fit the layers it names.
    """
    with boundary(ModelError, f"adapter {path} cannot be read"), safe_open(path, framework="pt") as file:
        raw = (file.metadata() or {}).get(KEY)
        if raw is None:
            raise ModelError(f"adapter {path} has no '{KEY}' metadata: it was not saved by resia")
        about = msgspec.json.decode(raw, type=AdapterInfo)
        tensors = {key: file.get_tensor(key).float() for key in file.keys() if key.startswith(KEY_PREFIX)}  # noqa: SIM118
    if about.base_digest != base_digest:
        raise ModelError(
            f"adapter {path} was trained on base {about.base_digest[:12]}, but the loaded base is {base_digest[:12]}"
        )
    targets = [name for name in linears if any(f".{name}".endswith(f".{end}") for end in about.target_modules)]
    wanted = {f"{KEY_PREFIX}{name}.lora_{side}.weight" for name in targets for side in "AB"}
    if not targets or set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)
        raise ModelError(f"adapter {path} does not match the layers {', '.join(about.target_modules)}: {odd[:2]}")
    layers = {name: _factors(path, name, linears, tensors, about) for name in targets}
    return Lora(about.lora_alpha / about.rank, layers)


def _factors(
    path: Path, name: str, linears: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], about: AdapterInfo
) -> Factors:
    A, B = (tensors[f"{KEY_PREFIX}{name}.lora_{side}.weight"] for side in "AB")
    out_features, in_features = linears[name].weight.shape
    if A.shape != (about.rank, in_features) or B.shape != (out_features, about.rank):
        raise ModelError(
            f"adapter {path}: {name} has factors {tuple(A.shape)} and {tuple(B.shape)}, not those of rank {about.rank}"
        )
    return Factors(A, B)


class Adapters:
    """The adapter in force on `model`; at most two stay loaded."""

    def __init__(self, model: Any, base_digest: str) -> None:
        embeddings = model.get_input_embeddings().weight
        self._linears: dict[str, Any] = {
            name: module
            for name, module in model.named_modules()
            # An output layer tied to the embeddings cannot change without changing them.
            if isinstance(module, torch.nn.Linear) and module.weight is not embeddings
        }
        self._fold = model.dtype == torch.float32
        self._base_digest = base_digest
        self._base = {name: module.weight.data for name, module in self._linears.items()}
        self._loaded: OrderedDict[str, Lora] = OrderedDict()
        self._handles: list[Any] = []
        self._active = ""

    def use(self, path: Path | None) -> str:
        """Switch to the adapter in `path`, None for the base; returns a key that is equal for equal weights in force.

        A file that was replaced is read again.
        """
        key = "" if path is None else _identity(path)
        if key != self._active:
            lora = self._load(path, key) if path else None
            self._switch_off()
            if lora:
                self._switch_on(lora)
            self._active = key
        return key

    def _load(self, path: Path, key: str) -> Lora:
        if key not in self._loaded:
            self._loaded[key] = read_lora(path, self._linears, self._base_digest)
        self._loaded.move_to_end(key)
        while len(self._loaded) > KEEP_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def _switch_off(self) -> None:
        self._active = ""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, module in self._linears.items():
            module.weight.data = self._base[name]

    def _switch_on(self, lora: Lora) -> None:
        for name, factors in lora.layers.items():
            module = self._linears[name]
            if self._fold:
                base = self._base[name]
                module.weight.data = torch.addmm(base, factors.B_O_R, factors.A_R_I, alpha=lora.scale)
            else:
                self._handles.append(module.register_forward_hook(_adding(factors, lora.scale, module.weight.dtype)))


def _adding(factors: Factors, scale: float, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    down_I_R, up_R_O = factors.A_R_I.to(dtype).T, (factors.B_O_R * scale).to(dtype).T

    def hook(_: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + (args[0] @ down_I_R) @ up_R_O

    return hook


def _identity(path: Path) -> str:
    with boundary(ModelError, f"adapter {path} cannot be read"):
        stat = path.stat()
    return f"{path.resolve()}:{stat.st_mtime_ns}:{stat.st_size}"

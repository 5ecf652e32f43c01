"""Adapters over one loaded base model: read, check, switch on and off without reloading anything.

An adapter in force adds (alpha / r) B A x to the output of each layer it names (Hu et al. 2021, arXiv:2106.09685,
eq. 3), as it did in training; the base weights are never touched. Folding it into them instead would decode about a
tenth faster, for a slower switch, a second copy of the weights, and in bfloat16 the loss of small updates.
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
    """One layer's update, x down up: (in, r) and (r, out) in the model's precision, the scale alpha / r in `up`."""

    down: torch.Tensor
    up: torch.Tensor


Layers = dict[str, Factors]


def read_lora(path: Path, linears: Mapping[str, Any], base_digest: str) -> Layers:
    """The updates in `path` by name of the layer, for the layers `linears` of the base with `base_digest`.

    Entries outside the adapted layers (a value head, say) are left alone. Raises ModelError naming the file when it
    is unreadable, was trained on another base, or does not fit the layers it names.
    """
    about, tensors = _read(path)
    if about.base_digest != base_digest:
        raise ModelError(
            f"adapter {path} was trained on base {about.base_digest[:12]}, but the loaded base is {base_digest[:12]}"
        )
    targets = [name for name in linears if any(f".{name}".endswith(f".{end}") for end in about.target_modules)]
    wanted = {f"{KEY_PREFIX}{name}.lora_{side}.weight" for name in targets for side in "AB"}
    if not targets or set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)[:2]
        raise ModelError(f"adapter {path} does not match the layers {', '.join(about.target_modules)}: {odd}")
    layers = {}
    for name in targets:
        A_R_I, B_O_R = (tensors[f"{KEY_PREFIX}{name}.lora_{side}.weight"] for side in "AB")
        weight_O_I = linears[name].weight
        if A_R_I.shape != (about.rank, weight_O_I.shape[1]) or B_O_R.shape != (weight_O_I.shape[0], about.rank):
            shapes = f"{tuple(A_R_I.shape)} and {tuple(B_O_R.shape)}"
            raise ModelError(f"adapter {path}: {name} has factors {shapes}, not those of rank {about.rank}")
        scale = about.lora_alpha / about.rank
        layers[name] = Factors(A_R_I.T.to(weight_O_I.dtype), (B_O_R.T * scale).to(weight_O_I.dtype))
    return layers


def _read(path: Path) -> tuple[AdapterInfo, dict[str, torch.Tensor]]:
    with boundary(ModelError, f"adapter {path} cannot be read"), safe_open(path, framework="pt") as file:
        raw = (file.metadata() or {}).get(KEY)
        if raw is None:
            raise ModelError(f"adapter {path} has no '{KEY}' metadata: it was not saved by resia")
        names = [name for name in list(file.keys()) if name.startswith(KEY_PREFIX)]
        return msgspec.json.decode(raw, type=AdapterInfo), {name: file.get_tensor(name).float() for name in names}


class Adapters:
    """The adapter in force on `model`; at most two stay loaded."""

    def __init__(self, model: Any, base_digest: str) -> None:
        self._linears: dict[str, Any] = {
            name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
        }
        self._base_digest = base_digest
        self._loaded: OrderedDict[str, Layers] = OrderedDict()
        self._handles: list[Any] = []
        self._active = ""

    def use(self, path: Path | None) -> str:
        """Switch to the adapter in `path`, None for the base; returns a key that is equal for equal weights in force.

        A file that was replaced is read again.
        """
        key = "" if path is None else _identity(path)
        if key != self._active:
            layers = self._load(path, key) if path else {}
            for handle in self._handles:
                handle.remove()
            self._handles = [
                self._linears[name].register_forward_hook(_adding(factors)) for name, factors in layers.items()
            ]
            self._active = key
        return key

    def _load(self, path: Path, key: str) -> Layers:
        if key not in self._loaded:
            self._loaded[key] = read_lora(path, self._linears, self._base_digest)
        self._loaded.move_to_end(key)
        while len(self._loaded) > KEEP_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]


def _adding(factors: Factors) -> Callable[..., torch.Tensor]:
    """A forward hook that adds the layer's update to its fresh output."""

    def hook(_: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        rows_N_I, into_N_O = args[0].flatten(0, -2), output.view(-1, output.shape[-1])
        into_N_O.addmm_(rows_N_I @ factors.down, factors.up)
        return output

    return hook


def _identity(path: Path) -> str:
    with boundary(ModelError, f"adapter {path} cannot be read"):
        stat = path.stat()
    return f"{path.resolve()}:{stat.st_mtime_ns}:{stat.st_size}"

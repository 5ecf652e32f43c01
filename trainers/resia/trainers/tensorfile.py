"""One safetensors file in memory: named tensors and one JSON value about them, the same content as the same bytes.

The JSON stands under the single metadata key "resia"; with more keys safetensors orders them as its hash map does.
Knows nothing of adapters or optimisers, which say what the tensors and the value mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from resia.events.errors import TrainerError

if TYPE_CHECKING:
    import torch

KEY = "resia"
HEADER_LENGTH_BYTES = 8
About = TypeVar("About", bound=msgspec.Struct)


class _Metadata(msgspec.Struct):
    about: str | None = msgspec.field(name=KEY, default=None)


class _Header(msgspec.Struct):
    metadata: _Metadata | None = msgspec.field(name="__metadata__", default=None)


def encode(tensors: Mapping[str, torch.Tensor], about: msgspec.Struct) -> bytes:
    """The file's bytes; tensors are copied off their device."""
    from safetensors.torch import save

    text = msgspec.json.encode(about, order="deterministic").decode()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata={KEY: text}))


def describe(data: bytes, kind: type[About], what: str) -> About:
    """The JSON value of a file, without its tensors; raises TrainerError naming `what` when there is none."""
    size = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
    try:
        header = msgspec.json.decode(data[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + size], type=_Header)
        text = header.metadata.about if header.metadata else None
        if text is None:
            raise TrainerError(f"{what} has no '{KEY}' metadata, so it was not written by this trainer")
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise TrainerError(f"{what} cannot be read: {cause}") from cause


def tensors_of(data: bytes, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a file; raises TrainerError naming `what` when it is not a whole safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except SafetensorError as cause:
        raise TrainerError(f"{what} cannot be read: {cause}") from cause


def copy_into(
    targets: Mapping[str, torch.Tensor], data: bytes, what: str, optional: Collection[str] = frozenset()
) -> None:
    """Overwrite every target by the tensor of its name; raises TrainerError, before any is written, when names or
    shapes differ. A name in `optional` may stand on one side only, and is then left alone."""
    import torch

    stored = tensors_of(data, what)
    targets = {name: target for name, target in targets.items() if name in stored or name not in optional}
    for name in sorted((targets.keys() ^ stored.keys()) - set(optional)):
        raise TrainerError(f"{what} {'lacks' if name in targets else 'has an unknown'} tensor {name}")
    for name, target in targets.items():
        if stored[name].shape != target.shape:
            found, wanted = tuple(stored[name].shape), tuple(target.shape)
            raise TrainerError(f"{what} holds {name} of shape {found}, this model needs {wanted}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name])

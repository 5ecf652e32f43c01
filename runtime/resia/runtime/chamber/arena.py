"""Memory that the judge and a kernel's process share: inputs as the judge made them, outputs full of NaN.

It is a file without a name, grown by this side alone; the other side has its descriptor.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from resia.domains.trimul.operator import Floats, Inputs

_ALIGNMENT = 4096
_LAST = "norm_weight"  # scales x, before any projection of it
Places = dict[str, tuple[int, tuple[int, ...]]]  # name -> offset in bytes, shape


class Laid(NamedTuple):
    """A batch in the arena: where each call's arrays are, and how many bytes it takes."""

    calls: tuple[Places, ...]
    bytes: int


class Arena:
    """One arena a kernel's process."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("resia-arena")
        self._memory: mmap.mmap | None = None

    def lay_out(self, calls: Sequence[Inputs]) -> Laid:
        """Make room for every call, with NaN where its output will be; the inputs are not there yet."""
        places, end = [], 0
        for call in calls:
            shapes = {name: array.shape for name, array in call.arrays().items()} | {"out": call.x.shape}
            placed: Places = {}
            for name, shape in shapes.items():
                placed[name] = (end, shape)
                end += -(-4 * int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT
            places.append(placed)
        self._grow(end)
        for placed in places:
            self._view(placed["out"])[...] = np.nan
        return Laid(tuple(places), end)

    def write(self, laid: Laid, calls: Sequence[Inputs]) -> None:
        """Write the inputs of every call. What all else depends on comes last, so that a kernel that watches the memory
        has nothing to begin with before it has everything."""
        for first in (True, False):
            for call, placed in zip(calls, laid.calls, strict=True):
                for name, array in call.arrays().items():
                    if first == (name != _LAST):
                        self._view(placed[name])[...] = array

    def outputs(self, laid: Laid) -> tuple[Floats, ...]:
        """What was handed over, as it is now; views, valid until the next batch."""
        return tuple(self._view(placed["out"]) for placed in laid.calls)

    def after(self, laid: Laid) -> tuple[Inputs, ...]:
        """The inputs as they are now; views, valid until the next batch."""
        views = ({name: self._view(place) for name, place in placed.items() if name != "out"} for placed in laid.calls)
        return tuple(Inputs(v.pop("x"), v.pop("mask"), v) for v in views)

    def close(self) -> None:
        """Give the memory back."""
        self._memory = None  # freed when the last view of it goes
        os.close(self.fd)

    def _grow(self, size: int) -> None:
        os.ftruncate(self.fd, max(size, os.fstat(self.fd).st_size))
        self._memory = mmap.mmap(self.fd, size)

    def _view(self, place: tuple[int, tuple[int, ...]]) -> Floats:
        offset, shape = place
        assert self._memory is not None  # laid out before
        found: np.ndarray[Any, np.dtype[np.float32]] = np.frombuffer(
            self._memory, np.float32, int(np.prod(shape)), offset
        )
        return found.reshape(shape)

"""What tests of the kernel-bench share: a right kernel file, small cases, a chamber whose clocks follow a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import resia.domains.trimul
from resia.domains.trimul.cases import SMOKE
from resia.domains.trimul.operator import Inputs, reference
from resia.domains.trimul.roofline import Device
from resia.kernels.ports import Ran
from resia.kernels.timing import Budget

RIGHT = (Path(resia.domains.trimul.__file__).parent / "template.py").read_text()
# Exploits put their own custom_kernel behind a right one that they may call.
HONEST = RIGHT.replace("def custom_kernel(", "def honest(")
SUITE = SMOKE
# On a busy machine only long batches tell a forged clock from a late wake-up.
QUICK = Budget(pairs=2, tries=8, batch_us=1.0, least_calls=24, most_calls=24, most_repeats=5)
SCRIPTED = Budget(pairs=2, tries=5, batch_us=1.0, least_calls=6, most_calls=6, most_repeats=5)
DEVICE = Device("scripted", "cpu", 1e15, 1e15, 1 << 10)


class ScriptedChamber:
    """Answers with right outputs at once. Each batch of n calls is said to take `inside_us` a call by the clock inside
    and `wall_us` a call plus `batch_us` a batch by the other."""

    tier = "scripted"

    def __init__(self, inside_us: float, wall_us: float, batch_us: float = 300.0, device: Device = DEVICE) -> None:
        self.device, self.batches, self.loaded = device, list[int](), 0
        self._inside, self._wall, self._batch = inside_us, wall_us, batch_us

    @contextmanager
    def load(self, source: str, config: object) -> Iterator[ScriptedChamber]:
        self.loaded += 1
        yield self

    def run(self, calls: Sequence[Inputs], watch: bool = False) -> Ran:
        self.batches.append(len(calls))
        outputs = tuple(reference(call).astype("float32") for call in calls)
        wall = self._batch + self._wall * len(calls)
        return Ran(outputs, tuple(calls), (self._inside,) * len(calls), wall)

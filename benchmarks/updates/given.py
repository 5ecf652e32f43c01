"""What every side of `benchmarks.trainers` is given: the batch, the settings, and the meter that reads its updates.

The batch is groups of rollouts of one turn over random tokens: prompts share a system part, completions differ in
length. Every side reads the same file. Knows nothing of losses.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from resia.events import TrainingSettings, Trajectory, Turn
from resia.trainers.batch import Batch, Rollout, Row, batch_of

MICRO_ROWS = 8  # rollouts in one forward pass, the default of TRL's trainers
DPO_PAIRS = 8
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Shape(NamedTuple):
    """Lengths in tokens: `system` is shared by all prompts, `item` by those of a group; completions are drawn
    uniformly from `shortest` to `longest`."""

    groups: int
    size: int
    system: int
    item: int
    shortest: int
    longest: int


class Sampled(msgspec.Struct, frozen=True):
    """One rollout of the file."""

    id: str
    group: str
    reward: float
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def rollout(self) -> Rollout:
        turn = Turn((), self.prompt_ids, self.completion_ids, self.logprobs, "", "stop", reward=self.reward)
        trajectory = Trajectory(self.group, 0, 1.0, (turn,))
        return Rollout(self.id, self.group, self.reward, True, None, trajectory)


class Task(msgspec.Struct, frozen=True):
    """What one process measures. `updates` come after one that warms up; `checkpointing` is TRL's setting."""

    side: str
    algorithm: str
    model: str
    batch: str
    threads: int
    updates: int
    checkpointing: bool


class Reading(msgspec.Struct, frozen=True):
    """Of one process: seconds of each update after the first by the clock and by processor time, the loss of the
    first, and memory in MB: with the model loaded, and how much more at the peak of any update."""

    seconds: list[float]
    cpu_seconds: list[float]
    loss: float
    model_mb: float
    peak_mb: float


def settings() -> TrainingSettings:
    """The project's, but for a REINFORCE without KL, as TRL's RLOO at beta 0, and so many pairs of DPO."""
    return TrainingSettings(bon_top=1024, kl_alpha=0.0, dpo_pairs=DPO_PAIRS, max_ratio=1e9)


def draw(shape: Shape, vocabulary: int, seed: int = 0) -> list[Sampled]:
    """Rollouts with distinct rewards; log-probabilities are still to come."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, vocabulary, count).tolist())

    system, made = ids(shape.system), []
    for group in range(shape.groups):
        prompt = system + ids(shape.item)
        for member in range(shape.size):
            answer = ids(int(rng.integers(shape.shortest, shape.longest + 1)))
            logprobs = (0.0,) * len(answer)
            made.append(Sampled(f"{group}-{member:03}", str(group), float(rng.random()), prompt, answer, logprobs))
    return made


def read(path: Path) -> list[Sampled]:
    return msgspec.json.decode(path.read_bytes(), type=list[Sampled])


def batch(sampled: list[Sampled]) -> Batch:
    context = max(len(one.prompt_ids) + len(one.completion_ids) for one in sampled)
    return batch_of([one.rollout() for one in sampled], context)


def rows_of(made: Batch) -> list[Row]:
    return [row for sample in made.samples for row in sample.turns]


def load_model(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


class Meter:
    """Reads this process. `loaded` once, with the model in place; then `begin` and `end` around every update."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._cpu: list[float] = []
        self._losses: list[float] = []
        self._model_mb = 0.0
        self._began = (0.0, 0.0)

    def loaded(self) -> None:
        gc.collect()
        CLEAR_REFS.write_text("5")  # Linux: the highest resident size so far is forgotten
        self._model_mb = _status_mb("VmRSS")

    def begin(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def end(self) -> None:
        self._seconds.append(time.perf_counter() - self._began[0])
        self._cpu.append(time.process_time() - self._began[1])

    def loss(self, value: float) -> None:
        self._losses.append(value)

    def reading(self) -> Reading:
        peak = _status_mb("VmHWM") - self._model_mb
        return Reading(self._seconds[1:], self._cpu[1:], self._losses[0], round(self._model_mb, 1), round(peak, 1))


def _status_mb(field: str) -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"{STATUS} says no {field}: memory is measured on Linux only (this is {os.uname().sysname})")

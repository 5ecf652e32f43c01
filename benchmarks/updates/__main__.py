"""One process of `benchmarks.trainers`: a task as JSON on standard input, a reading as JSON on standard output.

With side "record" it writes the batch's log-probabilities instead, and its reading is empty.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import msgspec

from benchmarks.updates import given


def main() -> None:
    import torch

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=given.Task)
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    sampled = given.read(Path(task.batch))
    if task.side == "record":
        from benchmarks.updates import ours

        ours.record(task.model, sampled, Path(task.batch))
        return
    meter = given.Meter()
    importlib.import_module(f"benchmarks.updates.{task.side}").run(task, sampled, meter)
    sys.stdout.write("\n" + msgspec.json.encode(meter.reading()).decode() + "\n")  # what trainers print comes before


if __name__ == "__main__":
    main()

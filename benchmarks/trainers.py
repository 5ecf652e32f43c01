"""One update of each algorithm against TRL's trainer: time and peak memory, on the same batch, model and threads.

TRL has GRPO, RLOO (our REINFORCE at KL 0), SFT (our best-of-N) and DPO. For PPO+GAE and the entropic objective it has
nothing, so there the other side is `obvious`: a plain loop over padded rows with whole logits, and says so. TRL runs
twice: as it comes, with gradient checkpointing, and without, which may be faster; a ratio is to the better of
the two, time and memory each, so one of ours below 1 beats both. Two shapes of batch: `short` answers to a long prompt
that the group shares, as in this project's domains, and `long` answers to a short prompt, where little is shared.

Every measurement is a process of its own; sides take turns. An update is all between two optimiser steps on the whole
batch, forward passes for values or a reference included, in float32. Time is the median; memory is the highest
resident size over any update less that with model and adapter loaded, so imports and weights count for no side.

    python -m benchmarks.trainers [--json] [--model DIR | --small] [--algorithms grpo,dpo] [--shapes short,long]
                                  [--threads N] [--repeats N] [--updates N] [--out PATH]

With --small the model is a random one of 8 million parameters in SmolLM2's proportions: minutes instead of an hour.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import machine
from benchmarks.updates.given import Reading, Sampled, Shape, Task, draw
from resia.events import ALGORITHMS

MODEL, SMALL = "smollm2-135m-instruct", "random-8m"
PEERS = {"grpo": "GRPOTrainer", "best_of_n": "SFTTrainer", "dpo": "DPOTrainer", "reinforce_kl": "RLOOTrainer"}
SHAPES = {
    "short": Shape(groups=2, size=8, system=160, item=40, shortest=8, longest=24),
    "long": Shape(groups=2, size=8, system=16, item=16, shortest=32, longest=192),
}
ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("trainers", __doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help=f"model folder (default: the pulled {MODEL})")
    model.add_argument("--small", action="store_true", help="a random model of 8 million parameters")
    parser.add_argument("--algorithms", type=lambda text: text.split(","), default=list(ALGORITHMS))
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2, help="processes a side")
    parser.add_argument("--updates", type=int, default=1, help="updates a process, after one to warm up")
    args = parser.parse_args(argv)
    for name, known in (("algorithms", ALGORITHMS), ("shapes", SHAPES)):
        if strange := [given for given in getattr(args, name) if given not in known]:
            parser.error(f"--{name} has '{strange[0]}': give some of {', '.join(known)}")
    if min(args.repeats, args.updates, args.threads) < 1:
        parser.error("--repeats, --updates and --threads are at least 1")
    with machine.folder(None) as scratch:
        machine.report(measure(_model(args, scratch), args), args, _table)
    return 0


def _model(args: Any, scratch: Path) -> Path:
    if args.small:
        from benchmarks.updates.small import build

        return build(scratch / SMALL)
    from resia.runtime.assets import require

    return args.model or require(MODEL)


def measure(folder: Path, args: Any) -> dict[str, Any]:
    """Figures by shape and algorithm; those of the first shape are also at the top under `algorithms`."""
    found = machine.describe(torch=version("torch"), transformers=version("transformers"), trl=version("trl"))
    shapes = {name: _shape(SHAPES[name], folder, args) for name in args.shapes}
    return {
        "benchmark": "trainers",
        "model": folder.name if args.small or args.model else MODEL,
        "dtype": "float32",
        "threads": args.threads,
        "repeats": args.repeats,
        "updates": args.updates,
        "algorithms": shapes[args.shapes[0]]["algorithms"],
        "shapes": shapes,
        "machine": {**found, "load_average_after": machine.load_average()},
    }


def _shape(shape: Shape, folder: Path, args: Any) -> dict[str, Any]:
    vocabulary = msgspec.json.decode((folder / "config.json").read_bytes())["vocab_size"]
    with tempfile.TemporaryDirectory() as made:
        batch = Path(made) / "batch.json"
        batch.write_bytes(msgspec.json.encode(draw(shape, vocabulary)))
        _process(Task("record", "", str(folder), str(batch), args.threads, 0, False))
        sampled = msgspec.json.decode(batch.read_bytes(), type=list[Sampled])
        figures = {name: _algorithm(name, folder, batch, args) for name in args.algorithms}
    return {
        **shape._asdict(),
        "tokens": sum(len(one.prompt_ids) + len(one.completion_ids) for one in sampled),
        "algorithms": figures,
    }


def _algorithm(algorithm: str, folder: Path, batch: Path, args: Any) -> dict[str, Any]:
    """Every side's figures, and ours over the best of the others."""

    def task(side: str, checkpointing: bool = False) -> Task:
        return Task(side, algorithm, str(folder), str(batch), args.threads, args.updates, checkpointing)

    tasks = {"resia": task("ours")}
    if algorithm in PEERS:
        tasks |= {"trl": task("peer", checkpointing=True), "trl_unchecked": task("peer")}
    else:
        tasks["obvious"] = task("obvious")
    readings: dict[str, list[Reading]] = {name: [] for name in tasks}
    for repeat in range(args.repeats):
        order = list(tasks) if repeat % 2 == 0 else list(reversed(tasks))
        for name in order:
            sys.stderr.write(f"{algorithm} {name} {repeat + 1}/{args.repeats}\n")
            readings[name].append(_process(tasks[name]))
    sides = {name: _figures(found) for name, found in readings.items()}
    others = [figures for name, figures in sides.items() if name != "resia"]

    def ratio(figure: str) -> float:
        return round(sides["resia"][figure] / min(other[figure] for other in others), 3)

    return {
        "peer": PEERS.get(algorithm, "obvious loop, whole logits (TRL has none)"),
        "time_ratio": ratio("seconds"),
        "cpu_time_ratio": ratio("cpu_seconds"),
        "memory_ratio": ratio("peak_mb"),
        "loss_difference": max(abs(sides["resia"]["loss"] - other["loss"]) for other in others),
        "sides": sides,
    }


def _figures(readings: list[Reading]) -> dict[str, float]:
    """Median seconds of an update, the highest memory of any process."""
    return {
        "seconds": round(statistics.median(second for one in readings for second in one.seconds), 3),
        "cpu_seconds": round(statistics.median(second for one in readings for second in one.cpu_seconds), 3),
        "peak_mb": max(one.peak_mb for one in readings),
        "model_mb": max(one.model_mb for one in readings),
        "loss": readings[0].loss,
    }


def _process(task: Task) -> Reading:
    """What a process of its own reads; its own words go to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.updates"],
        cwd=ROOT,
        input=msgspec.json.encode(task),
        stdout=subprocess.PIPE,
        check=True,
    )
    if task.side == "record":
        return Reading([], [], 0.0, 0.0, 0.0)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Reading)


def _table(result: dict[str, Any]) -> str:
    rows = [f"{result['model']}, float32, {result['threads']} threads, {result['machine']['cpu']}"]
    for name, shape in result["shapes"].items():
        rows.append(f"{name} answers: {shape['groups']} groups of {shape['size']}, {shape['tokens']} tokens")
        for algorithm, figures in shape["algorithms"].items():
            sides = ", ".join(
                f"{side} {one['seconds']:.2f} s {one['peak_mb']:.0f} MB" for side, one in figures["sides"].items()
            )
            ratios = f"time {figures['time_ratio']:.2f} x, memory {figures['memory_ratio']:.2f} x"
            rows.append(f"  {algorithm:<13} {ratios} ({sides})")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""How long a person waits: for `resia --help`, and from `resia run` to the first rollout in the log.

Help: wall time of the console script, in turn with two floors on the same interpreter, `python -c pass` and
`python -c 'import typer'`, which the command line is built on. First rollout: a short run as a process of its own;
its clock starts before that process does, and ends at the recorded time of the first `rollout-recorded`. Rollouts are
recorded a shard at a time, so this contains starting server and workers, their imports, the first harness, loading the
model and sampling one shard. One run with a tiny random model and, where it is pulled, one with SmolLM2.

    python -m benchmarks.startup [--json] [--repeats N] [--runs N] [--models tiny,smollm2-135m-instruct]
                                 [--iterations N] [--store DIR] [--out PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from resia.events import Fact
from resia.events.errors import UsageError
from resia.runtime.assets import locate
from resia.runtime.cli_options import BUDGET, DONE
from resia.runtime.reading import load
from resia.runtime.store import Store

TINY, SMOLLM2 = "tiny", "smollm2-135m-instruct"
ITEMS, GROUP, VALIDATION = 2, 4, 12
SETTINGS: Mapping[str, object] = {
    "domain_options.synthetic": "true",
    "domain_options.search_items": ITEMS,
    "domain_options.validation_items": VALIDATION,
    "domain_options.test_items": ITEMS,
    "loop.mode": "H",
    "sampling.group_size": GROUP,
    "sampling.shard_size": ITEMS * GROUP,
    "engine.threads": 1,
}


class ShortRun(NamedTuple):
    """A finished run: where it is, on which model, and when its process was started (seconds since the epoch)."""

    store: Store
    run: str
    model: str
    started: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("startup", __doc__)
    parser.add_argument("--repeats", type=int, default=10, help="starts of each command")
    parser.add_argument("--runs", type=int, default=1, help="runs a model")
    add_run_options(parser)
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.runs < 1:
        parser.error(f"--repeats {args.repeats} and --runs {args.runs}: give at least 1")
    machine.report(measure(args), args, _table)
    return 0


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of benchmarks that make short runs."""
    parser.add_argument("--models", type=_models, default=None, help=f"of {TINY},{SMOLLM2} (default: those here)")
    parser.add_argument("--iterations", type=int, default=2, help="iterations of a short run")
    parser.add_argument("--store", type=Path, help="folder for the runs (default: a temporary one)")


def _models(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - {TINY, SMOLLM2}:
        raise argparse.ArgumentTypeError(f"unknown model {min(unknown)!r}: give {TINY}, {SMOLLM2} or both")
    return chosen


def here(models: list[str] | None) -> list[str]:
    """The models asked for, or all that need no download now."""
    return models or [TINY, *([SMOLLM2] if locate(SMOLLM2) else [])]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    found = machine.describe()
    commands = {
        "resia_help_s": [_script(), "--help"],
        "python_pass_s": [sys.executable, "-c", "pass"],
        "import_typer_s": [sys.executable, "-c", "import typer"],
    }
    with machine.folder(args.store) as folder:
        return {
            "benchmark": "startup",
            **_started(commands, args.repeats),
            "repeats": args.repeats,
            "first_rollout": {
                name: _first_rollout([short_run(name, folder, n, args.iterations, SETTINGS) for n in range(args.runs)])
                for name in here(args.models)
            },
            "run": {"domain": "denoising, synthetic counts", "rollouts_of_first_shard": ITEMS * GROUP, "threads": 1},
            "machine": {**found, "load_average_after": machine.load_average()},
        }


def _started(commands: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each command, taken in turn after one start that warms the disk's cache."""
    walls: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if repeat:
                walls[name].append(time.perf_counter() - started)
    return {name: round(statistics.median(values), 3) for name, values in walls.items()}


def short_run(name: str, folder: Path, number: int, iterations: int, base: Mapping[str, object]) -> ShortRun:
    """`resia run` to its end in a store of its own under `folder`; raises RuntimeError with its last words."""
    store, run = folder / f"{name}-{number}", f"{name}-{number}"
    settings = {**base, "engine.model": _model(name, folder), "loop.max_iterations": iterations}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    started = time.time()
    done = subprocess.run(
        [_script(), "run", "--run", run, "--store", str(store), *options], stderr=subprocess.PIPE, text=True
    )
    if done.returncode not in (DONE, BUDGET):
        raise RuntimeError(f"a run with {name} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return ShortRun(Store(store), run, name, started)


def _model(name: str, folder: Path) -> str:
    """What `engine.model` takes: a pulled asset's name, or the folder of the tiny model, made on first use."""
    if name != TINY:
        return name
    made = folder / "tiny-random"
    if not made.exists():
        from resia.runtime.engines.tiny import build_tiny_model

        build_tiny_model(made, context=4096)
    return str(made)


def _first_rollout(runs: list[ShortRun]) -> dict[str, float]:
    """Median seconds from the start of the process to the first event, and on to the first rollout."""
    requests = [_recorded(run, "run-requested") for run in runs]
    rollouts = [_recorded(run, "rollout-recorded") for run in runs]
    starts = [run.started for run in runs]
    return {
        "total_s": _median_difference(rollouts, starts),
        "to_request_s": _median_difference(requests, starts),
        "from_request_s": _median_difference(rollouts, requests),
        "runs": len(runs),
    }


def _recorded(run: ShortRun, kind: str) -> float:
    """When the first event of this type was recorded."""
    facts = asyncio.run(load(run.store, run.run)).facts
    return next(f.envelope.recorded_at for f in facts if isinstance(f, Fact) and f.envelope.type == kind)


def _median_difference(later: list[float], earlier: list[float]) -> float:
    return round(statistics.median(b - a for a, b in zip(earlier, later, strict=True)), 2)


def _script() -> str:
    """The console script of this interpreter's environment, as a person calls it."""
    found = shutil.which("resia", path=sysconfig.get_path("scripts"))
    if found is None:
        raise UsageError("there is no resia command beside this python: pip install --editable '.[local]'")
    return found


def _table(result: dict[str, Any]) -> str:
    rows = [
        f"resia --help {result['resia_help_s']} s; python -c pass {result['python_pass_s']} s,"
        f" import typer {result['import_typer_s']} s"
    ]
    rows += [
        f"first rollout, {name}: {found['total_s']} s, of which {found['to_request_s']} s to the run's first event"
        for name, found in result["first_rollout"].items()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

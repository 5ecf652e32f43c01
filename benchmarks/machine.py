"""What the benchmarks share: the machine a figure was taken on, the options --json and --out, and the pulled models.

Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe(**more: object) -> dict[str, Any]:
    """What the numbers depend on, without the machine's name; call it before measuring, for the load of others."""
    return {
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "load_average_before": load_average(),
        "system": platform.system(),
        "python": platform.python_version(),
        **more,
    }


def load_average() -> float:
    """Processes that wanted to run over the last minute, those of other programs among them."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> str:
    """The processor's name; Linux says it in /proc/cpuinfo, other systems through `platform`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def options(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser of benchmark `name` with --json and --out; `doc` is its module's docstring."""
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--json", action="store_true", help="print the whole result as one line of JSON")
    parser.add_argument(
        "--out", type=Path, help=f"where the result is written (default: nowhere; {RESULTS.name}/ is make bench's)"
    )
    return parser


def report(result: Mapping[str, Any], chosen: argparse.Namespace, table: Callable[[Any], str]) -> None:
    """Write the result to --out, if any, and print it: one line of JSON with --json, else as `table` puts it."""
    write(result, chosen.out)
    print(json.dumps(result) if chosen.json else table(result))


def write(result: Mapping[str, Any], out: Path | None) -> None:
    """The result so far, where --out asks for it."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """`given`, or a temporary folder for the time of a measurement."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)

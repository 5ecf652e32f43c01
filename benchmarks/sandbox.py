"""What the sandbox costs: milliseconds to start one, and for one small call of a warm one.

`python -m benchmarks.sandbox [--json]` writes `benchmarks/results/sandbox.json`; `--json` prints the same line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from resia.runtime.sandbox import ProcessSandbox

RESULT = Path(__file__).parent / "results" / "sandbox.json"
SOURCE = "def extract(text):\n    return {'answer': text.split()[-1]}\n"
STARTS, WARM_UP, CALLS = 5, 20, 300


def milliseconds(action: Callable[[], object]) -> float:
    """Wall time of `action` in ms."""
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def start() -> None:
    """Start a sandbox, with the trial of its locks, and end it."""
    ProcessSandbox().close()


def machine() -> dict[str, object]:
    """What the numbers depend on, without the machine's name."""
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def measure() -> dict[str, object]:
    """Medians, and the 90th percentile of a call. `start_ms` includes the trial of the locks and the end."""
    starts = [milliseconds(start) for _ in range(STARTS)]
    with ProcessSandbox() as sandbox:
        calls = [milliseconds(lambda: sandbox.run(SOURCE, "extract", ["it is 42"])) for _ in range(WARM_UP + CALLS)]
        tier = sandbox.tier
    warm = calls[WARM_UP:]
    return {
        "benchmark": "sandbox",
        "tier": tier,
        "start_ms": round(statistics.median(starts), 2),
        "call_ms": round(statistics.median(warm), 3),
        "call_p90_ms": round(statistics.quantiles(warm, n=10)[-1], 3),
        "calls": CALLS,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(prog="benchmarks.sandbox", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(argv)
    result = measure()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['tier']}: start {result['start_ms']} ms, call {result['call_ms']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())

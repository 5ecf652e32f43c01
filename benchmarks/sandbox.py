"""What the sandbox costs: milliseconds to start one, and for one small call of a warm one.

python -m benchmarks.sandbox [--json] [--starts N] [--calls N] [--out PATH]
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks import machine
from resia.runtime.sandbox import ProcessSandbox

SOURCE = "def extract(text):\n    return {'answer': text.split()[-1]}\n"
WARM_UP = 20


def milliseconds(action: Callable[[], object]) -> float:
    """Wall time of `action` in ms."""
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def start() -> None:
    """Start a sandbox, with the trial of its locks, and end it."""
    ProcessSandbox().close()


def measure(starts: int, calls: int) -> dict[str, object]:
    """Medians, and the 90th percentile of a call. `start_ms` includes the trial of the locks and the end."""
    # Landlock depends on the kernel's release.
    found = machine.describe(system=f"{platform.system()} {platform.release()}")
    started = [milliseconds(start) for _ in range(starts)]
    with ProcessSandbox() as sandbox:
        called = [milliseconds(lambda: sandbox.run(SOURCE, "extract", ["it is 42"])) for _ in range(WARM_UP + calls)]
        tier = sandbox.tier
    warm = called[WARM_UP:]
    return {
        "benchmark": "sandbox",
        "tier": tier,
        "start_ms": round(statistics.median(started), 2),
        "call_ms": round(statistics.median(warm), 3),
        "call_p90_ms": round(statistics.quantiles(warm, n=10)[-1], 3),
        "calls": calls,
        "machine": found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, print it."""
    parser = machine.options("sandbox", __doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--calls", type=int, default=300, help="calls of a warm sandbox, at least 2")
    args = parser.parse_args(argv)
    if args.starts < 1 or args.calls < 2:
        parser.error(f"--starts {args.starts} and --calls {args.calls}: give at least 1 and 2")
    machine.report(measure(args.starts, args.calls), args, _table)
    return 0


def _table(result: dict[str, object]) -> str:
    return f"{result['tier']}: start {result['start_ms']} ms, call {result['call_ms']} ms"


if __name__ == "__main__":
    sys.exit(main())

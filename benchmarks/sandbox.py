"""What the sandbox costs: milliseconds until a ready guest takes a source, for one run, and for what a rollout needs.

python -m benchmarks.sandbox [--json] [--boots N] [--calls N] [--out PATH]

Every tier that holds here is measured; the figures at the top are those of the strongest. A rollout is one extraction
and one dispatch with one tool call, each in a guest of its own. `start_ms`, `call_ms` and `rollout_ms` are taken with
the guests that wait ahead all there, as they are after a completion was sampled; `sustained` is without a pause.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks import machine
from resia.events.errors import UsageError
from resia.runtime.sandbox import TIERS, ProcessSandbox, SandboxLimits, Tier, wire
from resia.runtime.sandbox.process import WARM
from resia.runtime.sandbox.server import Server

EXTRACT = "def extract(text):\n    return {'answer': text.split()[-1]}\n"
DISPATCH = "def dispatch(request, tools):\n    return tools.solve(answer=request['answer'])\n"
WARM_UP = 2 * WARM
# Longer than the fork server waits before it makes a guest, and than it takes for one.
REST_S = 0.03


def milliseconds(action: Callable[[], object]) -> float:
    """Wall time of `action` in ms."""
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def repeat(times: int, action: Callable[[], object]) -> None:
    """`action`, `times` times."""
    for _ in range(times):
        action()


def boot(tier: Tier) -> None:
    """Start a sandbox, with the trial of its locks, and end it."""
    ProcessSandbox(tiers=[tier]).close()


def extraction(sandbox: ProcessSandbox) -> None:
    """One run."""
    sandbox.run(EXTRACT, "extract", ["it is 42"])


def rollout(sandbox: ProcessSandbox) -> None:
    """What the sandbox does for one completion."""
    request = sandbox.run(EXTRACT, "extract", ["it is 42"]).value
    sandbox.run(DISPATCH, "dispatch", [request], {"solve": lambda arguments: arguments["answer"]})


def started(server: Server) -> None:
    """One guest, until it has said that it is locked and waits for its source."""
    pid, near = server.take()
    with near:
        wire.unframe(near.recv, SandboxLimits().message_bytes)
    server.end(pid)


def rested(action: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of `action`, `times` times, each after a rest."""
    found = []
    for _ in range(times):
        time.sleep(REST_S)
        found.append(milliseconds(action))
    return found


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile and least, as `NAME_ms`, `NAME_p90_ms`, `NAME_least_ms`; others' load only adds."""
    p90 = statistics.quantiles(values, n=10)[-1]
    found = {f"{name}_ms": statistics.median(values), f"{name}_p90_ms": p90, f"{name}_least_ms": min(values)}
    return {key: round(value, 3) for key, value in found.items()}


def cpu_ms(tier: Tier, calls: int) -> float:
    """CPU time of a sandbox's processes, from its start to its end, over `calls` rollouts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with ProcessSandbox(tiers=[tier]) as sandbox:
        repeat(calls, lambda: rollout(sandbox))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def sustained(tier: Tier, calls: int) -> float:
    """Rollouts a second, one after the other without a pause."""
    with ProcessSandbox(tiers=[tier]) as sandbox:
        for _ in range(WARM_UP):
            rollout(sandbox)
        return round(calls * 1000 / milliseconds(lambda: repeat(calls, lambda: rollout(sandbox))), 1)


@contextmanager
def one_core() -> Iterator[None]:
    """This process and what it starts on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def of_tier(tier: Tier, boots: int, calls: int) -> dict[str, object]:
    """The figures of `tier`. Raises UsageError where it does not hold."""
    found: dict[str, object] = {
        "boot_ms": round(statistics.median(milliseconds(lambda: boot(tier)) for _ in range(boots)), 1)
    }
    server = Server(SandboxLimits().setup(True, WARM), tier.enclosed)
    try:
        found |= spread("start", rested(lambda: started(server), calls))
        found |= spread("rollout_start", rested(lambda: repeat(2, lambda: started(server)), calls))
    finally:
        server.close()
    with ProcessSandbox(tiers=[tier]) as sandbox:
        found |= spread("call", rested(lambda: extraction(sandbox), calls))
        found |= spread("rollout", rested(lambda: rollout(sandbox), calls))
    found["rollout_cpu_ms"] = round((cpu_ms(tier, calls) - cpu_ms(tier, 0)) / calls, 2)
    found["sustained_rollouts_per_s"] = sustained(tier, calls)
    with one_core():
        found["sustained_one_core_rollouts_per_s"] = sustained(tier, calls)
    return found


def measure(boots: int, calls: int) -> dict[str, object]:
    """Every tier that holds; the strongest at the top. Raises UsageError where none does."""
    # Landlock depends on the kernel's release.
    found = machine.describe(system=f"{platform.system()} {platform.release()}")
    tiers: dict[str, dict[str, object]] = {}
    for tier in TIERS:
        try:
            tiers[tier.name] = of_tier(tier, boots, calls)
        except UsageError as error:
            sys.stderr.write(f"{tier.name}: {error}\n")
    if not tiers:
        raise UsageError("no tier of the sandbox holds on this machine")
    best, figures = next(iter(tiers.items()))
    return {
        "benchmark": "sandbox",
        "tier": best,
        **figures,
        "tiers": tiers,
        "warm": WARM,
        "calls": calls,
        "machine": found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, print it."""
    parser = machine.options("sandbox", __doc__)
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="of each kind, at least 2")
    args = parser.parse_args(argv)
    if args.boots < 1 or args.calls < 2:
        parser.error(f"--boots {args.boots} and --calls {args.calls}: give at least 1 and 2")
    machine.report(measure(args.boots, args.calls), args, _table)
    return 0


def _table(result: dict[str, dict[str, dict[str, object]]]) -> str:
    return "\n".join(
        f"{name}: start {found['start_ms']} ms, call {found['call_ms']} ms, rollout {found['rollout_ms']} ms"
        for name, found in result["tiers"].items()
    )


if __name__ == "__main__":
    sys.exit(main())

"""Run the benchmarks, each in a process of its own, and put their figures beside the goals.

    python -m benchmarks [NAME ...] [--json] [options of the named ones]

Without names all of them run, which takes minutes. Other options go to every benchmark that is run. The exit code is
1 when one fails to run; a goal that is missed is shown and fails nothing. With --json one line of JSON a benchmark.
Without other options the figures are the published ones, in benchmarks/results; with some, they are written where --out
says, or nowhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Figure(NamedTuple):
    """A number in a benchmark's result: where it is, how it is written, and what it should be."""

    label: str
    path: tuple[str, ...]
    form: str = "{:,.2f}"
    goal: str = ""


def _false_accept(scenario: str) -> tuple[str, ...]:
    return ("scenarios", scenario, "gates", "resia", "false_accept")


def _over(peer: str, algorithm: str) -> tuple[Figure, Figure]:
    """The two ratios of one algorithm's update to that of `peer`."""
    return (
        Figure(f"{algorithm} / {peer}, time", ("algorithms", algorithm, "time_ratio"), goal="<= 0.80"),
        Figure(f"{algorithm} / {peer}, memory", ("algorithms", algorithm, "memory_ratio"), goal="<= 0.80"),
    )


SMOLLM2 = "smollm2-135m-instruct"
FIGURES: dict[str, tuple[Figure, ...]] = {
    "startup": (
        Figure("resia --help", ("resia_help_s",), "{:.2f} s", "< 0.3 s"),
        Figure("first rollout, tiny model", ("first_rollout", "tiny", "total_s"), "{:.1f} s"),
        Figure("first rollout, SmolLM2", ("first_rollout", SMOLLM2, "total_s"), "{:.1f} s"),
    ),
    "log": (
        Figure("single appends", ("append_single_per_s",), "{:,.0f} /s"),
        Figure("of the bare client's", ("ratio", "single"), goal=">= 0.5"),
        Figure("batched appends", ("append_batch_per_s",), "{:,.0f} /s", ">= 30,000 /s"),
        Figure("of the bare client's", ("ratio", "batch"), goal=">= 0.5"),
        Figure("events read", ("read_per_s",), "{:,.0f} /s"),
        Figure("events folded", ("fold_per_s",), "{:,.0f} /s", ">= 200,000 /s"),
        Figure("a million rebuilt", ("replay_1m_s",), "{:.1f} s", "< 10 s"),
        Figure("append to handler, p99", ("p99_ms",), "{:.1f} ms", "< 10 ms"),
        Figure("the same, 50 tails, 100 /s", ("tails", "p99_ms"), "{:.1f} ms"),
    ),
    "overhead": (
        Figure("bus and log, tiny model", ("runs", "tiny-random", "share"), "{:.1%}"),
        Figure("bus and log, SmolLM2", ("runs", SMOLLM2, "share"), "{:.2%}", "< 1%"),
    ),
    "sandbox": (
        Figure("sandbox start of a rollout", ("rollout_start_ms",), "{:.2f} ms", "< 2 ms"),
        Figure("sandbox call", ("call_ms",), "{:.1f} ms"),
        Figure("sandbox, whole rollout", ("rollout_ms",), "{:.1f} ms"),
    ),
    "trimul": (
        Figure("TriMul, torch, plain", ("kernels", "torch-plain", "geomean_us"), "{:,.0f} us"),
        Figure("TriMul, torch, fused", ("kernels", "torch-fused", "geomean_us"), "{:,.0f} us"),
        Figure("TriMul, Triton, fused", ("kernels", "triton-fused", "geomean_us"), "{:,.0f} us"),
    ),
    "gate": (
        Figure("false accept, 24 binary items", _false_accept("binary-24"), "{:.3f}"),
        Figure("false accept, 60 binary items", _false_accept("binary-60"), "{:.3f}"),
        Figure("false accept, 12 scored items", _false_accept("continuous-12"), "{:.3f}"),
    ),
    "selection": (
        Figure("regret of the rules", ("rules",), "{:.4f}"),
        Figure("of a learned policy", ("learned",), "{:.4f}"),
        Figure("of entropic alone", ("entropic",), "{:.4f}"),
        Figure("of the best algorithm alone", ("best_static", "mean"), "{:.4f}"),
        Figure("of chance", ("random",), "{:.4f}"),
        Figure("rules less entropic", ("differences", "rules - entropic", "mean"), "{:+.4f}", "below 0 by 2 SE"),
    ),
    "trainers": (
        *_over("TRL's", "grpo"),
        *_over("TRL's", "best_of_n"),
        *_over("TRL's", "dpo"),
        *_over("TRL's", "reinforce_kl"),
        *_over("obvious", "ppo_gae"),
        *_over("obvious", "entropic"),
    ),
    "magic": (
        Figure("MAGIC, 559 x 7,221", ("sides", "resia", "wall_s"), "{:.2f} s", "< 1.6 s"),
        Figure("its score", ("sides", "resia", "audited"), "{:.4f}", "0.222 +- 0.005"),
        Figure("score of the authors' package", ("sides", "authors", "audited"), "{:.4f}"),
        Figure("its time over ours", ("sides", "authors", "slower_than_resia"), "{:.1f} x"),
        Figure("plain version's over ours", ("sides", "plain", "slower_than_resia"), "{:.1f} x"),
    ),
    "engines": tuple(
        Figure(
            f"{engine}, {dtype}{', adapter' * (weights == 'adapter')}", ("results", dtype, engine, weights, *path), form
        )
        for dtype in ("float32", "bfloat16")
        for engine in ("transformers", "vllm")
        for weights, path, form in (
            ("base", ("tokens_per_s",), "{:,.0f} tokens/s"),
            ("adapter", ("tokens_per_s",), "{:,.0f} tokens/s"),
        )
    ),
    "engine": (
        Figure("engine, float32", ("results", "engine_float32", "rollouts_per_s"), "{:.2f} rollouts/s"),
        Figure("over generate, batched", ("speedup", "over_batch"), "{:.1f} x"),
        Figure("over generate, one by one", ("speedup", "over_serial"), "{:.1f} x"),
    ),
    "scale": (
        *(
            figure
            for count in ("1", "2", "4", "8")
            for figure in (
                Figure(f"task workers: {count}", ("rollouts", count, "rollouts_per_s"), "{:.1f} rollouts/s"),
                Figure("of one process without a log", ("rollouts", count, "ratio")),
            )
        ),
        *(
            figure
            for count in ("1", "10", "100")
            for figure in (
                Figure(f"runs written at once: {count}", ("appends", count, "ours_events_per_s"), "{:,.0f} /s"),
                Figure("of the bare client's", ("appends", count, "ratio"), goal=">= 0.5"),
            )
        ),
        Figure("a resting run, in a worker", ("idle", "slopes", "worker_memory_mb_a_run"), "{:.3f} MB"),
        Figure("a resting run, in the server", ("idle", "slopes", "server_memory_mb_a_run"), "{:.3f} MB"),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON a benchmark instead of a table")
    args, others = parser.parse_known_args(argv)
    if unknown := [name for name in args.names if name not in FIGURES]:
        parser.error(f"unknown benchmark '{unknown[0]}': give some of {', '.join(FIGURES)}")
    failed = []
    for name in args.names or _possible():
        result = _run(name, others)
        if result is None:
            failed.append(name)
        else:
            print(json.dumps(result) if args.json else _table(name, result), flush=True)
    if failed:
        sys.stderr.write(f"failed to run: {', '.join(failed)}\n")
    return 1 if failed else 0


def _possible() -> list[str]:
    """All but those that need what is not on this machine, which are named."""
    from resia.runtime.vllm_environment import BUILDS, located

    missing = () if located(BUILDS["cpu"]) else ("engines",)
    for name in missing:
        sys.stderr.write(f"{name} is left out: vLLM is not prepared, run: resia engine vllm prepare --device cpu\n")
    return [name for name in FIGURES if name not in missing]


def _run(name: str, options: list[str]) -> dict[str, Any] | None:
    """The benchmark's result, None when it failed; what it says on standard error is shown as it comes."""
    place = options or ["--out", str(ROOT / "benchmarks" / "results" / f"{name}.json")]
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *place]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _table(name: str, result: dict[str, Any]) -> str:
    """A line for each figure that this run has; a model that is not pulled has none."""
    rows = []
    for figure in FIGURES[name]:
        value: Any = result
        for key in figure.path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            goal = f"goal {figure.goal}" if figure.goal else ""
            rows.append(f"{name:<10}{figure.label:<32}{figure.form.format(value):>18}  {goal}".rstrip())
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

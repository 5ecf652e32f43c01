"""The engines beside each other, on the same prompts in one run: transformers in this process, vLLM on a server.

A batch of rollouts as the Task role samples them, at temperature 0.7, from the base and with an adapter of rank 32, in
float32 and bfloat16. For each the rate, how far the recorded log-probabilities are from those that the trainer
recomputes in the same precision, and how many completions are the same when the batch is sampled again; and whether
greedy tokens are those of the embedded engine. vLLM must be prepared (resia engine vllm
prepare); both have the same threads.

    python -m benchmarks.engines [--json] [--model DIR] [--rollouts N] [--threads N] [--dtype NAME ...] [--out PATH]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.engine import GROUP, MODEL, NEW_TOKENS, TEMPERATURE, _prompt

DTYPES = ("float32", "bfloat16")
RANK = 32
NUDGE = 0.01  # standard deviation of the adapter's B: far enough from the base that a wrong adapter shows


class Setting(NamedTuple):
    """What both engines of one precision share."""

    folder: Path
    digest: str
    dtype: str
    threads: int
    rollouts: int
    adapter: Path
    scratch: Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("engines", __doc__)
    parser.add_argument("--model", type=Path, help=f"model folder (default: the pulled {MODEL})")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="once for each (default: both)")
    args = parser.parse_args(argv)
    if args.rollouts < 1:
        parser.error(f"--rollouts is {args.rollouts}: give at least 1")
    machine.report(measure(args.model, args.rollouts, args.threads, args.dtype or DTYPES), args, _table)
    return 0


def measure(model: Path | None, rollouts: int, threads: int, dtypes: Sequence[str]) -> dict[str, Any]:
    """Every precision in turn: transformers first, then a server of its own."""
    import torch

    from resia.runtime.assets import model_digest, require
    from resia.runtime.vllm_environment import BUILDS, required

    environment = required(BUILDS["cpu"])
    folder = model or require(MODEL)
    found = machine.describe(instruction_set=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__)
    digest, results = model_digest(folder), {}
    with tempfile.TemporaryDirectory() as made:
        adapter = _adapter(folder, digest, threads, Path(made) / "adapter.safetensors")
        for dtype in dtypes:
            setting = Setting(folder, digest, dtype, threads, rollouts, adapter, Path(made))
            results[dtype] = _both(setting, environment)
    return {
        "benchmark": "engines",
        "model": MODEL if model is None else model.name,
        "rollouts": rollouts,
        "max_new_tokens": NEW_TOKENS,
        "temperature": TEMPERATURE,
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "vllm": {"version": environment.vllm, "torch": environment.torch},
        "machine": found,
        "results": results,
    }


def _adapter(folder: Path, digest: str, threads: int, path: Path) -> Path:
    """An adapter that changes something: a fresh one with B moved from zero."""
    import torch

    from resia.events import TrainingSettings
    from resia.trainers.policy import Policy

    policy = Policy.load(folder, "float32", threads, TrainingSettings(rank=RANK, lora_alpha=2 * RANK), digest)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in policy.weights.items():
            if "lora_B" in name:
                weight.normal_(std=NUDGE)
    path.write_bytes(policy.adapter_bytes())
    return path


def _both(setting: Setting, environment: Any) -> dict[str, Any]:
    from resia.events import EngineSettings, TrainingSettings
    from resia.runtime.engines.transformers_engine import TransformersEngine
    from resia.runtime.engines.vllm_engine import VllmEngine
    from resia.runtime.vllm_serving import Serving, start
    from resia.trainers.policy import Policy

    dtype: Any = setting.dtype
    training = TrainingSettings(rank=RANK, lora_alpha=2 * RANK)
    policy = Policy.load(setting.folder, dtype, setting.threads, training, setting.digest)
    settings: Any = {"model": MODEL, "dtype": setting.dtype, "threads": setting.threads}
    own = TransformersEngine(setting.folder, EngineSettings(**settings))
    results = {"transformers": _measured(own, policy, setting)}
    greedy = _sampled(own, setting, 0.0, None)
    del own
    began = time.perf_counter()
    serving = Serving(setting.folder, setting.dtype, threads=setting.threads, rank=RANK)
    server = start(environment, serving, setting.scratch / "logs", _tell)
    try:
        ready_s = time.perf_counter() - began
        urls = EngineSettings("vllm", **settings, urls=(server.url,))
        engine = VllmEngine(setting.folder, setting.digest, urls, setting.scratch / "peft")
        results["vllm"] = {"ready_s": round(ready_s, 1), **_measured(engine, policy, setting)}
        theirs = _sampled(engine, setting, 0.0, None)
        engine.close()
    finally:
        server.stop()
    same = sum(a.token_ids == b.token_ids for a, b in zip(greedy, theirs, strict=True))
    return {**results, "greedy_completions_equal": f"{same} of {len(greedy)}"}


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _measured(engine: Any, policy: Any, setting: Setting) -> dict[str, Any]:
    """Rates of the base and the adapter apart, each after one completion of other prompts, which loads the adapter."""
    results: dict[str, Any] = {}
    for name, adapter in (("base", None), ("adapter", setting.adapter)):
        _sampled(engine, setting, TEMPERATURE, adapter, rows=1, shift=100)
        began = time.perf_counter()
        found = _sampled(engine, setting, TEMPERATURE, adapter)
        seconds = time.perf_counter() - began
        again = _sampled(engine, setting, TEMPERATURE, adapter)
        tokens = sum(len(row.token_ids) for row in found)
        same = sum(a.token_ids == b.token_ids for a, b in zip(found, again, strict=True))
        results[name] = {
            "seconds": round(seconds, 3),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 1),
            "rollouts_per_s": round(len(found) / seconds, 3),
            "again_equal": f"{same} of {len(found)}",
            "drift": _drift(found, policy, setting, adapter),
        }
        _tell(f"{setting.dtype} {type(engine).__name__} {name}: {results[name]}")
    return results


def _sampled(
    engine: Any, setting: Setting, temperature: float, adapter: Path | None, rows: int | None = None, shift: int = 0
) -> list[Any]:
    from resia.agents.ports import Sampling
    from resia.events import Message

    count = rows or setting.rollouts
    chats = [[Message(m["role"], m["content"]) for m in _prompt(shift + row // GROUP)] for row in range(count)]
    found: list[Any] = engine.generate(chats, Sampling(temperature, NEW_TOKENS), range(count), adapter)
    return found


def _drift(found: list[Any], policy: Any, setting: Setting, adapter: Path | None) -> dict[str, float]:
    """Mean and largest absolute difference to the trainer's log-probabilities, in nats a token; and the mean if the
    server had mixed up the base and the adapter."""
    from resia.events import TrainingSettings
    from resia.trainers.batch import Row
    from resia.trainers.drift import drift

    rows = [Row(n, 0, one.prompt_ids, one.token_ids, one.logprobs, TEMPERATURE, 0.0) for n, one in enumerate(found)]
    weights, micro_tokens = setting.adapter.read_bytes(), TrainingSettings().micro_tokens
    measured = drift(policy, rows, weights if adapter else None, micro_tokens)
    other = drift(policy, rows, None if adapter else weights, micro_tokens)
    return {
        "mean": float(f"{measured.mean:.3g}"),
        "largest": float(f"{measured.largest:.3g}"),
        "mean_of_a_mix_up": float(f"{other.mean:.3g}"),
    }


def _table(result: dict[str, Any]) -> str:
    rows = [f"{result['model']}, {result['rollouts']} rollouts, {result['machine']['cpu']}"]
    for dtype, engines in result["results"].items():
        for engine in ("transformers", "vllm"):
            for weights in ("base", "adapter"):
                one = engines[engine][weights]
                rows.append(
                    f"{dtype:<9} {engine:<13} {weights:<8} {one['tokens_per_s']:8.1f} tokens/s  drift"
                    f" {one['drift']['mean']:.1e} (largest {one['drift']['largest']:.1e})  again {one['again_equal']}"
                )
        rows.append(f"{dtype:<9} greedy completions equal: {engines['greedy_completions_equal']}")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""Rollouts a second of the embedded engine against `model.generate` of transformers, on the same prompts and machine.

A batch of rollouts as the Task role samples them: one shared system prompt, a few items, a group of rollouts an item,
at most 24 new tokens, temperature 0.7. The peer runs twice: prompts one by one, and as one left-padded batch.

    python -m benchmarks.engine [--json] [--model DIR] [--rollouts N] [--serial N] [--threads N] [--out PATH]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine

MODEL = "smollm2-135m-instruct"
GROUP = 8
NEW_TOKENS = 24
TEMPERATURE = 0.7
SYSTEM = "You choose the settings of a denoiser. " + "Reply with one line such as knn=3 t=2 order=1. " * 12


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("engine", __doc__)
    parser.add_argument("--model", type=Path, help=f"model folder (default: the pulled {MODEL})")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--serial", type=int, default=8, help="rollouts of the slow one-by-one peer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    if not 1 <= args.serial <= args.rollouts:
        parser.error(f"--serial is {args.serial}: give 1 to --rollouts ({args.rollouts})")
    result = measure(args.model, args.rollouts, args.serial, args.threads)
    machine.report(result, args, _table)
    return 0


def measure(model: Path | None, rollouts: int, serial: int, threads: int) -> dict[str, Any]:
    """Engine in both precisions, then the peer in float32; each after a warm-up of one group."""
    import torch

    from resia.runtime.assets import require

    folder = model or require(MODEL)
    found = machine.describe(instruction_set=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__)
    prompts = [_prompt(row // GROUP) for row in range(rollouts)]
    results = {
        "engine_float32": _engine(folder, "float32", threads, prompts),
        "engine_bfloat16": _engine(folder, "bfloat16", threads, prompts),
        **_peer(folder, prompts, serial),
    }
    return {
        "benchmark": "engine",
        "model": MODEL if model is None else model.name,
        "rollouts": rollouts,
        "max_new_tokens": NEW_TOKENS,
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "machine": found,
        "results": results,
        "speedup": _speedup(results),
    }


def _prompt(item: int) -> list[dict[str, str]]:
    user = f"item {item}: {200 + 10 * item} cells, depth 0.{item + 1}; your line?"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def _engine(
    folder: Path, dtype: Literal["float32", "bfloat16"], threads: int, prompts: list[list[dict[str, str]]]
) -> dict[str, float]:
    from resia.agents.ports import Sampling
    from resia.events import EngineSettings, Message
    from resia.runtime.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(folder, EngineSettings(dtype=dtype, threads=threads))
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=NEW_TOKENS)

    def sample(rows: int, seed: int) -> int:
        # Another system prompt each time: a prefix kept from the warm-up would flatter the result.
        chats = [
            [Message("system", f"{seed} {SYSTEM}"), Message("user", chat[1]["content"])] for chat in prompts[:rows]
        ]
        return sum(len(row.token_ids) for row in engine.generate(chats, sampling, range(seed, seed + rows), None))

    sample(min(GROUP, len(prompts)), seed=1)
    return _timed(len(prompts), lambda: sample(len(prompts), seed=2))


def _peer(folder: Path, prompts: list[list[dict[str, str]]], serial: int) -> dict[str, dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)

    def sample(chats: list[list[dict[str, str]]]) -> int:
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(
            **inputs, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        # Rows that ended are padded with the end token; the first one of each counts.
        return int((new != tokenizer.eos_token_id).sum() + (new == tokenizer.eos_token_id).any(dim=1).sum())

    sample(prompts[:1])
    return {
        "generate_batch": _timed(len(prompts), lambda: sample(prompts)),
        "generate_serial": _timed(serial, lambda: sum(sample([chat]) for chat in prompts[:serial])),
    }


def _timed(rollouts: int, sample: Callable[[], int]) -> dict[str, float]:
    """Wall-clock rates, and rollouts a second of processor time, which neighbours on the machine disturb less."""
    started, used = time.perf_counter(), time.process_time()
    tokens = sample()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    return {
        "rollouts": rollouts,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "rollouts_per_s": round(rollouts / seconds, 3),
        "rollouts_per_cpu_s": round(rollouts / cpu_seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
    }


def _speedup(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The float32 engine over each peer, by the clock and by processor time."""
    return {
        f"over_{peer}{clock}": round(
            results["engine_float32"][f"rollouts_per{clock}_s"] / results[f"generate_{peer}"][f"rollouts_per{clock}_s"],
            2,
        )
        for peer in ("batch", "serial")
        for clock in ("", "_cpu")
    }


def _table(result: dict[str, Any]) -> str:
    rows = [f"{result['model']}, {result['rollouts']} rollouts, {result['machine']['cpu']}"]
    rows += [
        f"{name:<16} {row['rollouts_per_s']:8.2f} rollouts/s {row['tokens_per_s']:8.1f} tokens/s"
        for name, row in result["results"].items()
    ]
    times = result["speedup"]
    rows.append(
        f"float32 engine: {times['over_batch']} x batch, {times['over_serial']} x one by one; "
        f"by processor time {times['over_batch_cpu']} x and {times['over_serial_cpu']} x"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""MAGIC: how fast, how near to its authors' package and to a plain version, and what it scores, in one run.

The counts are CellTypist's sample cells, all of them, genes in at least 30: 559 x 7,221. Every side denoises the same
training half in order `rev`, in a process of its own with the same threads; all answers meet the same judge. The
authors' package pins old libraries, so it is measured where --peer names a Python that has it (magic-impute).

    python -m benchmarks.magic [--json] [--counts FILE] [--peer PYTHON] [--repeats N] [--out PATH]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.imputing.sides import SIDES
from resia.domains.denoising.matrices import read_counts
from resia.domains.denoising.metrics import Judge, split_molecules
from resia.runtime import assets

SCRIPT = Path(__file__).parent / "imputing" / "sides.py"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SAMPLE = "celltypist-sample"


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("magic", __doc__)
    parser.add_argument("--counts", default="", help="a file of counts; default: the pulled sample")
    parser.add_argument("--peer", default="", help="a Python with magic-impute")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--min-cells", type=int, default=30, help="cells that a kept gene is counted in")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    machine.report(measure(args), args, _table)
    return 0


def measure(args: Any) -> dict[str, Any]:
    found = machine.describe(numpy=np.__version__)
    counts = read_counts(args.counts or str(assets.require(SAMPLE, None))).genes_in(args.min_cells)
    halves = split_molecules(counts.dense(np.arange(counts.cells)), 0.9, np.random.default_rng(0))
    judge = Judge(halves.train, halves.test)
    pythons = dict.fromkeys(SIDES, sys.executable) | {"authors": args.peer}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "halves.npz", train=halves.train)
        sides = {side: _side(side, python, Path(folder), args) for side, python in pythons.items() if python}
        answers = {side: np.load(Path(folder) / f"{side}.npy") for side in sides}
    for side, result in sides.items():
        verdict = judge.verdict(answers[side].astype(halves.train.dtype))
        result |= {
            "audited": round(verdict.audited, 4),
            "published": round(verdict.published, 4),
            "poisson_norm_plain": round(verdict.poisson_norm_plain, 3),
            "differs_from_resia": _difference(answers["resia"], answers[side]),
            "differs_from_randomised": _difference(answers["randomised"], answers[side]),
            "slower_than_resia": round(result["processor_s"] / sides["resia"]["processor_s"], 1),
        }
    return {
        "benchmark": "magic",
        "cells": len(halves.train),
        "genes": halves.train.shape[1],
        "threads": args.threads,
        "machine": found,
        "sides": sides,
    }


def _side(side: str, python: str, folder: Path, args: Any) -> dict[str, Any]:
    command = [python, str(SCRIPT), side, str(folder / "halves.npz"), str(folder / f"{side}.npy"), str(args.repeats)]
    limits = dict.fromkeys(THREADS, str(args.threads))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **limits})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _difference(left: Any, right: Any) -> float:
    """The largest difference of two matrices, as a share of the larger one's largest value."""
    return float(f"{np.abs(left - right).max() / max(np.abs(left).max(), np.abs(right).max()):.1e}")


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'side':<12}{'wall s':>9}{'cpu s':>9}{'audited':>9}{'off resia':>11}{'off random.':>13}"]
    for side, found in result["sides"].items():
        times = f"{found['wall_s']:>9.2f}{found['processor_s']:>9.2f}"
        off = f"{found['differs_from_resia']:>11.0e}{found['differs_from_randomised']:>13.0e}"
        lines.append(f"{side:<12}{times}{found['audited']:>9.4f}{off}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""TriMul kernels, judged and timed by the strict protocol: microseconds, the score and how far the roofline is.

python -m benchmarks.trimul [--json] [--device auto|cpu|cuda] [--suite NAME] [--kernels NAME ...] [--out PATH]

On a GPU the published cases and our Triton kernels; on a processor an eighth of each N and the torch template, in CPU
microseconds that compare with no published number.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import resia.domains.trimul
import resia.kernels
from benchmarks import machine
from resia.domains.trimul.cases import geometric_mean
from resia.domains.trimul.roofline import three_kernels_us
from resia.domains.trimul.tool import FUSED, PLAIN
from resia.kernels.bench import cases_for
from resia.kernels.judge import Judge
from resia.kernels.ports import Limits
from resia.runtime.chamber.devices import find
from resia.runtime.chamber.lease import lease
from resia.runtime.chamber.process import ProcessChamber

TEMPLATE = Path(resia.domains.trimul.__file__).with_name("template.py")
OURS = Path(resia.kernels.__file__ or "").parent
PUBLISHED_US = {"human best H100": 1371, "TTT-Discover H100": 1161, "SIA-W+H H100": 1017}


class Kernel(NamedTuple):
    """A kernel file and the configuration it is called with."""

    file: Path
    config: Mapping[str, Any] = {}


KERNELS: dict[str, dict[str, Kernel]] = {
    "cpu": {"torch-plain": Kernel(TEMPLATE, PLAIN.answer), "torch-fused": Kernel(TEMPLATE, FUSED.answer)},
    "cuda": {
        "torch-fused": Kernel(TEMPLATE, FUSED.answer),
        "triton-plain": Kernel(OURS / "triton_plain.py"),
        "triton-fused": Kernel(OURS / "triton_fused.py"),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, write the result, print it. Exit code 1 when a kernel is rejected."""
    parser = machine.options("trimul", __doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--suite", default="", help="full, small or smoke; default by device")
    parser.add_argument("--kernels", nargs="+", help="some of those there are for the device")
    parser.add_argument("--threads", type=int, default=2, help="of torch on a processor")
    args = parser.parse_args(argv)
    device = find(args.device, args.threads)
    suite, known = cases_for(args.suite, device), KERNELS[device.kind]
    chosen = args.kernels or list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown kernel '{unknown[0]}': on {device.kind} there are {', '.join(known)}")
    found = machine.describe(device=device.name)
    with ProcessChamber(Limits(threads=args.threads), device) as chamber, lease(device):
        judge = Judge(chamber, suite, say=lambda text: print(text, file=sys.stderr))
        verdicts = {name: judge.bench(known[name].file.read_text(), known[name].config, "strict", 0) for name in chosen}
    result = {
        "benchmark": "trimul",
        "unit": "GPU microseconds" if device.kind == "cuda" else "CPU microseconds",
        "suite": suite.name,
        "protocol": "strict",
        "three_kernels_us": round(geometric_mean({c.name: three_kernels_us(c, device) for c in suite.timed}), 2),
        "published_us": PUBLISHED_US if suite.name == "full" else {},
        "kernels": {
            name: {
                "failure": v.failure,
                "detail": v.detail,
                "geomean_us": v.geomean_us,
                "reward": v.reward,
                "floor_us": v.floor_us,
                "case_us": v.case_us,
                "tier": v.tier,
            }
            for name, v in verdicts.items()
        },
        "machine": found,
    }
    machine.report(result, args, _table)
    return int(any(v.failure for v in verdicts.values()))


def _table(result: dict[str, Any]) -> str:
    rows = [f"{result['machine']['device']}, {result['suite']} cases, {result['unit']}"]
    for name, row in result["kernels"].items():
        said = f"{row['geomean_us']:>12,.1f} us  reward {row['reward']:.4f}" if not row["failure"] else row["detail"]
        rows.append(f"{name:14}{said}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

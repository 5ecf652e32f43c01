"""TriMul kernels, verified and timed by both protocols: microseconds a case, the score, how far the roofline is.

python -m benchmarks.trimul [--json] [--device auto|cpu|cuda] [--suite NAME] [--kernels NAME ...] [--out PATH]
                            [--protocols strict gpumode] [--wall-s SECONDS] [--threads N] [--unsafe-local]

On a GPU the published cases, the operator as it is written, the same through torch.compile, and our Triton kernels; on
a processor an eighth of each N and the torch template, in CPU microseconds that compare with no published number. A
kernel that is rejected is a row of its own, and the others go on. What is done is written to --out after each kernel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import resia.domains.trimul
import resia.kernels
from benchmarks import machine
from resia.domains.trimul.cases import Suite, geometric_mean
from resia.domains.trimul.roofline import Device, three_kernels_us
from resia.domains.trimul.tool import FUSED, PLAIN
from resia.events import KernelProtocol
from resia.events.errors import UsageError
from resia.kernels.bench import cases_for
from resia.kernels.judge import Judge, Verdict
from resia.kernels.ports import Limits
from resia.kernels.timing import Budget
from resia.runtime.chamber.devices import find
from resia.runtime.chamber.lease import lease
from resia.runtime.chamber.process import ProcessChamber

DOMAIN = Path(resia.domains.trimul.__file__).parent
OURS = Path(resia.kernels.__file__ or "").parent
PROTOCOLS: tuple[KernelProtocol, ...] = ("strict", "gpumode")
# A compiler may take this long for one call on a GPU; it is no part of a time.
GPU_LIMITS = Limits(load_s=180.0, call_s=180.0)
PUBLISHED_US = {"human best H100": 1371, "TTT-Discover H100": 1161, "SIA-W+H H100": 1017}


class Kernel(NamedTuple):
    """A kernel file and the configuration it is called with."""

    file: Path
    config: Mapping[str, Any] = {}


TORCH_FUSED = Kernel(DOMAIN / "template.py", FUSED.answer)
KERNELS: dict[str, dict[str, Kernel]] = {
    "cpu": {"torch-plain": Kernel(DOMAIN / "template.py", PLAIN.answer), "torch-fused": TORCH_FUSED},
    "cuda": {
        "reference": Kernel(DOMAIN / "plain.py"),
        "torch-compile": Kernel(Path(__file__).with_name("trimul_compiled.py")),
        "torch-fused": TORCH_FUSED,
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
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--wall-s", type=float, default=Budget().wall_s, help="of one case under gpumode")
    parser.add_argument("--threads", type=int, default=2, help="of torch on a processor")
    parser.add_argument("--unsafe-local", action="store_true", help="where no sandbox holds")
    args = parser.parse_args(argv)
    try:
        result = measured(args)
    except UsageError as cause:
        parser.error(str(cause))
    machine.report(result, args, _table)
    return int(any(row["failure"] for row in result["kernels"].values()))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """A row a kernel. Raises UsageError for a device, a suite or a kernel that there is not."""
    device = find(args.device, args.threads)
    suite, known = cases_for(args.suite, device), KERNELS[device.kind]
    chosen = args.kernels or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"unknown kernel '{unknown[0]}': on {device.kind} there are {', '.join(known)}")
    result = _about(suite, device)
    limits, budget = Limits(threads=args.threads) if device.kind == "cpu" else GPU_LIMITS, Budget(wall_s=args.wall_s)
    with ProcessChamber(limits, device, args.unsafe_local) as chamber, lease(device):
        for name in chosen:
            verdicts = judged(chamber, suite, budget, known[name], args.protocols)
            result["kernels"][name] = _row(verdicts, result["three_kernels_us"])
            machine.write(result, args.out)
    return result


def judged(
    chamber: ProcessChamber, suite: Suite, budget: Budget, kernel: Kernel, protocols: Sequence[KernelProtocol]
) -> dict[KernelProtocol, Verdict]:
    """A verdict a protocol. It is verified under the first alone; one that is wrong is not asked again."""
    source, verdicts = kernel.file.read_text(), dict[KernelProtocol, Verdict]()
    for number, protocol in enumerate(protocols):
        asked = suite if number == 0 else suite._replace(tested=())
        judge = Judge(chamber, asked, budget, lambda text: print(f"{kernel.file.stem}: {text}", file=sys.stderr))
        verdicts[protocol] = judge.bench(source, kernel.config, protocol, 0)
        if verdicts[protocol].stage in ("compile", "verify"):
            break
    return verdicts


def _about(suite: Suite, device: Device) -> dict[str, Any]:
    """What every row is measured by; call it before measuring."""
    floors = {case.name: three_kernels_us(case, device) for case in suite.timed}
    return {
        "benchmark": "trimul",
        "unit": "GPU microseconds" if device.kind == "cuda" else "CPU microseconds",
        "suite": suite.name,
        "three_kernels_us": round(geometric_mean(floors), 2),
        "three_kernels_case_us": {name: round(us, 2) for name, us in floors.items()},
        "published_us": PUBLISHED_US if suite.name == "full" else {},
        "kernels": {},
        "machine": machine.describe(device=device.name),
    }


def _row(verdicts: Mapping[KernelProtocol, Verdict], floor_us: float) -> dict[str, Any]:
    """A kernel's figures: those of the first protocol at the top, and each protocol's."""
    first, last = next(iter(verdicts.values())), list(verdicts.values())[-1]
    bad = next((v for v in verdicts.values() if v.failure), last)
    return {
        "failure": bad.failure,
        "detail": bad.detail,
        "verified": first.verified,
        "geomean_us": first.geomean_us,
        "floor_us": first.floor_us,
        "protocols": {
            protocol: {
                "failure": v.failure,
                "detail": v.detail,
                "geomean_us": v.geomean_us,
                "reward": v.reward,
                "ratio_to_three_kernels": round(v.geomean_us / floor_us, 3),
                "case_us": v.case_us,
            }
            for protocol, v in verdicts.items()
        },
        "tier": first.tier,
    }


def _table(result: dict[str, Any]) -> str:
    floor = result["three_kernels_us"]
    lines = [f"{result['machine']['device']}, {result['suite']} cases, {result['unit']}"]
    for name, row in result["kernels"].items():
        for protocol, figures in row["protocols"].items():
            lines.append(f"{name}, {protocol}")
            if figures["failure"]:
                lines.append(f"  rejected {figures['failure']}: {figures['detail']}")
                continue
            floors = result["three_kernels_case_us"]
            lines += [
                f"  {case:28}{us:>14,.1f} us {us / floors[case]:>9.2f} x" for case, us in figures["case_us"].items()
            ]
            ratio, reward = figures["ratio_to_three_kernels"], figures["reward"]
            lines.append(
                f"  {'geometric mean':28}{figures['geomean_us']:>14,.1f} us {ratio:>9.2f} x  reward {reward:.4f}"
            )
    return "\n".join([*lines, f"floor of three kernels {floor:,.1f} us (the x are over it)"])


if __name__ == "__main__":
    sys.exit(main())

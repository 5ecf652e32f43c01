"""What no program on a device can beat: its arithmetic and its memory, at the rates that its maker's design allows.

A measured time under `ideal_us` is no achievement but a fault of the measurement. Rates of known GPUs are what large
16-bit products and copies reach there; of a processor, more than it could ever do, because its clock is not known:
there the bound is weak, and says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .cases import geometric_mean
from .operator import HIDDEN, Case

GPUS = {  # name as the driver says it contains: (FLOP/s in 16 bit, bytes/s, bytes of L2)
    "H200": (790e12, 4.3e12, 50 << 20),
    "H100": (790e12, 3.0e12, 50 << 20),
    "A100": (312e12, 2.0e12, 40 << 20),
    "B200": (2250e12, 8.0e12, 126 << 20),
}
CPU_CLOCK = 6e9  # Hz, above any that is sold
CPU_BYTES_PER_S = 1e12  # caches included
CPU_CACHE = 8 << 20  # where the system does not say
# FLOP a cycle and core: two fused multiply-adds of a full vector; AMX multiplies tiles in 16 bits.
CPU_VECTORS = {"amx_bf16": 2048, "avx512_bf16": 128, "avx512f": 64, "avx2": 32}
OTHER_VECTOR = 32


class Device(msgspec.Struct, frozen=True):
    """`flops` and `bytes` a second at most; `cache_bytes` of the largest cache, which timed inputs must overflow.

    `unit` tells two devices of one name apart on a machine; empty where there can be only one.
    """

    name: str
    kind: str  # cuda or cpu
    flops: float
    bytes: float
    cache_bytes: int
    unit: str = ""


def gpu(name: str, flops: float, bytes_: float, cache_bytes: int, unit: str = "") -> Device:
    """A GPU by the driver's name: the rates known for it, else those computed from its properties; of two words on its
    cache the larger."""
    known = next((rates for model, rates in GPUS.items() if model in name), (flops, bytes_, cache_bytes))
    return Device(name, "cuda", known[0], known[1], max(known[2], cache_bytes), unit)


def cpu(threads: int) -> Device:
    """This machine's processor, of which `threads` may be used."""
    text = _cpuinfo()
    flags = set(next((line.partition(":")[2] for line in text if line.startswith("flags")), "").split())
    vector = next((width for flag, width in CPU_VECTORS.items() if flag in flags), OTHER_VECTOR)
    name = next((line.partition(":")[2].strip() for line in text if line.startswith("model name")), os.uname().machine)
    return Device(f"{name}, {threads} threads", "cpu", threads * CPU_CLOCK * vector, CPU_BYTES_PER_S, _cache_bytes())


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _cache_bytes() -> int:
    """The largest cache a core has, by the system's own word."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=CPU_CACHE)


def flop(case: Case) -> float:
    """Multiplications and additions: six projections and the product over k."""
    positions = case.batch * case.n**2
    return 2.0 * positions * HIDDEN * (6 * case.channels + case.n)


def ideal_us(case: Case, device: Device) -> float:
    """Everything fused: x, mask and output once through memory, or the arithmetic, whichever takes longer."""
    traffic = 2 * case.x_bytes + 4 * case.batch * case.n**2
    return _us(flop(case), traffic, device)


def three_kernels_us(case: Case, device: Device) -> float:
    """Three kernels one after the other, what is between them in 16 bits: projections, product, output."""
    positions = case.batch * case.n**2
    half = 2 * positions * HIDDEN  # bytes of L, R, G or O
    project = _us(2.0 * positions * HIDDEN * 5 * case.channels, case.x_bytes + 4 * positions + 3 * half, device)
    multiply = _us(2.0 * positions * HIDDEN * case.n, 3 * half, device)
    finish = _us(2.0 * positions * HIDDEN * case.channels, 2 * half + case.x_bytes, device)
    return project + multiply + finish


def _us(flops: float, traffic: float, device: Device) -> float:
    return 1e6 * max(flops / device.flops, traffic / device.bytes)


def floor_us(cases: tuple[Case, ...], device: Device) -> float:
    """Geometric mean of `ideal_us`: no score may be below it."""
    return geometric_mean({case.name: ideal_us(case, device) for case in cases})

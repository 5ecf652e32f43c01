"""What this machine can do for a run, found by looking and trying; one check a function, the list in `CHECKS`.

A check never raises: what it cannot find out is its finding. No heavy library is imported; versions come from the
metadata of what is installed. Collaborators: `sandbox.probe`, which tries; `cli_doctor`, which prints.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from resia.events.errors import UsageError

from . import server
from .resources import package_version
from .sandbox import ENCLOSED, NONE, Probe, probe
from .sandbox.bubblewrap import ABSENT

Status = Literal["ok", "warning", "fault"]
GIB = 2**30
# A run of the demo writes tens of MB; a trainer's adapters and a long log write GB.
WANTED_GIB, LEAST_GIB = 5.0, 0.2
_LOCAL = ("torch", "transformers", "peft", "safetensors")
_CORE = ("msgspec", "nats-py", "pydantic")
_VERSION_S = 10.0


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding, one sentence, and what to do about it.

    A `fault` means that a run cannot be made here or that its log may be lost; a `warning` names what is worse than it
    could be. The sandbox's finding has what its tier `protects` and `exposes`.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    protects: tuple[str, ...] = ()
    exposes: tuple[str, ...] = ()


class Place(NamedTuple):
    """What the checks look at: the store's folder and that of pulled assets (None: the default), neither of which need
    be there yet, and what the sandbox's trial found."""

    store: Path
    sandbox: Probe
    cache: Path | None = None


def sound(checks: Iterable[Check]) -> bool:
    """Whether no fault stands."""
    return all(check.status != "fault" for check in checks)


def diagnose(store: Path, cache: Path | None = None) -> tuple[Check, ...]:
    """Try the sandbox, then every check of this machine in order."""
    place = Place(store, probe(), cache)
    return tuple(check(place) for check in CHECKS)


def sandbox(place: Place) -> Check:
    """The tier that holds, and what would make it a better one."""
    tier, passed_over = place.sandbox
    if tier is NONE:
        why = "; ".join(dict.fromkeys(passed_over.values()))
        fix = "use a Linux kernel from 5.13 with Landlock and seccomp, or accept the risk with --unsafe-local"
        return Check("sandbox", "fault", f"generated code is refused here ({why})", fix)
    better = passed_over.get(ENCLOSED.name)
    if better is None:
        return Check("sandbox", "ok", tier.name, "", tier.protects, tier.exposes)
    found, fix = _worse(better)
    return Check("sandbox", "warning", f"{tier.name}; {found}", fix, tier.protects, tier.exposes)


def _worse(why: str) -> tuple[str, str]:
    if why == ABSENT:
        return "no bubblewrap is here, so it has no namespaces of its own", "install bubblewrap"
    return f"bubblewrap is here and does not hold ({why})", "let this user make user namespaces"


def packages(_place: Place) -> Check:
    """Python, resia and the libraries that it always needs."""
    return Check(
        "python", "ok", f"{platform.python_version()}, {_listed([('resia', package_version()), *_found(_CORE)])}"
    )


def engine(_place: Place) -> Check:
    """The libraries of the embedded engine and the trainer."""
    found = _found(_LOCAL)
    if missing := [name for name in _LOCAL if name not in dict(found)]:
        return Check(
            "engine", "warning", f"no {', '.join(missing)}: nothing is sampled here", "pip install 'resia[local]'"
        )
    return Check("engine", "ok", _listed(found))


def _found(names: Iterable[str]) -> list[tuple[str, str]]:
    found = []
    for name in names:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def _listed(found: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found)


def processor(_place: Place) -> Check:
    """Cores this process may use, and the instructions that set the speed of sampling."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    about = f"{cores} of {os.cpu_count()} cores, {platform.machine()}"
    flags = _flags()
    if not flags:
        return Check("processor", "ok", about)
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    short = "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "no bfloat16"
    return Check("processor", "ok" if "avx2" in flags else "warning", f"{about}, {wide}, {short} instructions")


def _flags() -> set[str]:
    """The processor's features as Linux on x86_64 names them, empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def gpu(_place: Place) -> Check:
    """What NVIDIA's own tool says. A run needs none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("gpu", "ok", "none: models run on the processor")
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as cause:
        return Check("gpu", "warning", f"nvidia-smi does not tell: {cause}", "mend the driver, or do without")
    cards = done.stdout.strip().splitlines()
    if not cards:
        return Check("gpu", "warning", "nvidia-smi names no card", "mend the driver, or do without")
    return Check("gpu", "ok", "; ".join(cards))


def disk(place: Place) -> Check:
    """Free space where the store, its blobs and the pulled assets are or would be; the least of them decides."""
    from .assets import cache_folder

    places = {"store": place.store, "blobs": place.store / "blobs", "assets": cache_folder(place.cache)}
    free = {name: _free(folder) for name, folder in places.items()}
    least = min(free.values()) / GIB
    together: dict[int, list[str]] = {}
    for name, found in free.items():
        together.setdefault(found >> 20, []).append(name)  # those of one disk are said once
    about = ", ".join(f"{mib / 1024:,.1f} GiB free for {' and '.join(names)}" for mib, names in together.items())
    stops = f"a run stops in order at {server.STOPS_BYTES >> 20} MiB, with nothing lost"
    if least < LEAST_GIB:
        return Check("disk", "fault", f"{about}: {stops}", f"free {LEAST_GIB} GiB, or name another folder with --store")
    if least < WANTED_GIB:
        return Check("disk", "warning", f"{about}: {stops}", "resia archive and remove finished runs, and resia gc")
    return Check("disk", "ok", about)


def _free(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def log_server(_place: Place) -> Check:
    """The embedded server's program and its version."""
    try:
        program = server.binary()
    except UsageError as cause:
        return Check("log server", "warning", *_split(str(cause)))
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as cause:
        return Check("log server", "warning", f"{program} does not start: {cause}", "pip install 'resia[local]' again")
    return Check("log server", "ok", done.stdout.strip().replace(": ", " ").removesuffix("."))


def _split(sentence: str) -> tuple[str, str]:
    """What is wrong, and the fix after the last colon that a space follows."""
    what, _, fix = sentence.partition(": ")
    return what, fix


CHECKS: tuple[Callable[[Place], Check], ...] = (sandbox, packages, engine, processor, gpu, disk, log_server)

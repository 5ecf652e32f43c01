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

Status = Literal["ok", "warning", "failed"]
GIB = 2**30
# A run of the demo writes tens of MB; a trainer's adapters and a long log write GB.
WANTED_GIB, LEAST_GIB = 5.0, 0.2
_LOCAL = ("torch", "transformers", "peft", "safetensors")
_CORE = ("msgspec", "nats-py", "pydantic")
_VERSION_S = 10.0


class Check(msgspec.Struct, frozen=True):
    """One finding. `failed` means that no run can be made here; a `warning` names what is worse than it could be."""

    name: str
    status: Status
    detail: str


class Place(NamedTuple):
    """What the checks look at: the store's folder, which need not be there yet, and what the sandbox's trial found."""

    store: Path
    sandbox: Probe


class Diagnosis(msgspec.Struct, frozen=True):
    """All findings. `protects` and `exposes` are the sandbox tier's, empty where generated code is refused."""

    sandbox_tier: str
    protects: tuple[str, ...]
    exposes: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def able(self) -> bool:
        """Whether runs can be made here."""
        return all(check.status != "failed" for check in self.checks)


def diagnose(store: Path) -> Diagnosis:
    """Try the sandbox, then every check in order."""
    place = Place(store, probe())
    tier = place.sandbox.tier
    return Diagnosis(tier.name, tier.protects, tier.exposes, tuple(check(place) for check in CHECKS))


def sandbox(place: Place) -> Check:
    """The tier that holds, and what would make it a better one."""
    tier, passed_over = place.sandbox
    if tier is NONE:
        why = "; ".join(dict.fromkeys(passed_over.values()))
        fix = "use a Linux kernel from 5.13 with Landlock and seccomp, or accept the risk with --unsafe-local"
        return Check("sandbox", "failed", f"generated code is refused here ({why}): {fix}")
    if ENCLOSED.name in passed_over:
        return Check("sandbox", "warning", f"{tier.name}; {_better(passed_over[ENCLOSED.name])}")
    return Check("sandbox", "ok", tier.name)


def _better(why: str) -> str:
    if why == ABSENT:
        return "install bubblewrap, and it gets namespaces of its own as well"
    return f"bubblewrap is here and does not hold ({why}): let this user make user namespaces"


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
            "engine", "warning", f"no {', '.join(missing)}: pip install 'resia[local]' to sample and train here"
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


def disk(place: Place) -> Check:
    """Free space where the store is or would be."""
    folder = place.store.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    about = f"{free:,.1f} GiB free for {place.store}"
    if free < LEAST_GIB:
        return Check("disk", "failed", f"{about}: name a folder with at least {LEAST_GIB} GiB with --store")
    if free < WANTED_GIB:
        return Check("disk", "warning", f"{about}: a long run takes more")
    return Check("disk", "ok", about)


def log_server(_place: Place) -> Check:
    """The embedded server's program and its version."""
    try:
        program = server.binary()
    except UsageError as cause:
        return Check("log server", "warning", str(cause))
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as cause:
        return Check("log server", "warning", f"{program} does not start: {cause}")
    return Check("log server", "ok", done.stdout.strip().replace(": ", " ").removesuffix("."))


CHECKS: tuple[Callable[[Place], Check], ...] = (sandbox, packages, engine, processor, disk, log_server)

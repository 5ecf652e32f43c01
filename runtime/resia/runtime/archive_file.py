"""The file format of archives: one tar, a manifest first, and every member checked before anything is done with it.

    manifest.json   streams/<run>   blobs/<digest>   manifest.sha256

`streams/<run>` is the server's own copy of a run's stream. Knows nothing of servers.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from resia.events.errors import UsageError
from resia.events.ids import sha256
from resia.events.subjects import check_run

from .blobs import DirectoryBlobs
from .export import shown
from .streamcopy import Copied

FORMAT, VERSION = "resia-archive", 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
MAX_MANIFEST = 64 << 20
_PIECE = 1 << 20


class Member(msgspec.Struct, frozen=True):
    """One file of the archive: bytes and SHA-256."""

    size: int
    sha256: str


class Kept(msgspec.Struct, frozen=True):
    """One run of the archive. `times` hashes the server's times; `digest` is of the state after the last event."""

    run: str
    events: int
    merkle_root: str
    times: str
    digest: str
    status: str | None
    stream: Copied


class Manifest(msgspec.Struct, frozen=True):
    """What the archive of `run` holds: its ancestors first, itself last. `time` in epoch seconds."""

    format: str
    version: int
    run: str
    package: str
    time: float
    runs: tuple[Kept, ...]
    members: dict[str, Member]


def member(path: Path) -> Member:
    """What the file at `path` is as a member."""
    with path.open("rb") as source:
        return Member(path.stat().st_size, hashlib.file_digest(source, "sha256").hexdigest())


def write_tar(sink: IO[bytes], manifest: Manifest, folder: Path, blobs: DirectoryBlobs) -> None:
    """Streams from `folder` and blobs, in the manifest's order after the manifest; on disk when it returns."""
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        data = msgspec.json.encode(manifest)
        _add(tar, MANIFEST, len(data), BytesIO(data))
        for name, member in manifest.members.items():
            kind, _, what = name.partition("/")
            path = folder / what if kind == "streams" else blobs.place(what)
            with path.open("rb") as source:
                _add(tar, name, member.size, source)
        _add(tar, SEAL, 64, BytesIO(sha256(data).encode()))
    sink.flush()
    os.fsync(sink.fileno())


def _add(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    tar.addfile(info, source)


class Opened(NamedTuple):
    """An archive whose every member was checked; `member` gives one as a file of bytes."""

    manifest: Manifest
    tar: tarfile.TarFile
    path: Path

    def member(self, name: str) -> IO[bytes]:
        source = self.tar.extractfile(name)
        assert source is not None, "every member was read before"
        return source


@contextmanager
def opened_archive(path: Path) -> Iterator[Opened]:
    """Open and check an archive. UsageError names the member that is damaged, missing or too much."""
    try:
        source = path.open("rb")
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror}") from None
    with source:
        yield _read(path, source)


def _read(path: Path, source: IO[bytes]) -> Opened:
    try:
        return _checked(path, tarfile.open(fileobj=source, mode="r:"))
    except (tarfile.TarError, EOFError) as cause:
        raise damaged(path, f"it is no whole tar file ({cause})") from None
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror or cause}") from None


def damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} cannot be restored: {why}; take another copy of the archive")


def _checked(path: Path, tar: tarfile.TarFile) -> Opened:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > MAX_MANIFEST:
        raise damaged(path, f"it does not begin with {MANIFEST}")
    source = tar.extractfile(first)
    data = source.read() if source else b""
    manifest = _manifest(path, data)
    seen: set[str] = set()
    while (info := tar.next()) is not None and info.name != SEAL:
        member = manifest.members.get(info.name)
        if member is None or not info.isfile() or info.name in seen:
            raise damaged(path, f"its member '{shown(info.name)}' is not in the manifest")
        seen.add(info.name)
        source = tar.extractfile(info)
        if source is None or info.size != member.size or _hash(source) != member.sha256:
            raise damaged(path, f"its member {info.name} does not match the manifest, so it was changed")
    if missing := sorted(manifest.members.keys() - seen):
        raise damaged(path, f"it ends before its member {missing[0]}, so it was cut off")
    source = tar.extractfile(info) if info is not None and info.isfile() else None
    if source is None or source.read(65) != sha256(data).encode():
        raise damaged(path, f"its {MANIFEST} does not match {SEAL}, so one of them was changed")
    return Opened(manifest, tar, path)


def _hash(source: IO[bytes]) -> str:
    hashed = hashlib.sha256()
    while piece := source.read(_PIECE):
        hashed.update(piece)
    return hashed.hexdigest()


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise damaged(path, f"its {MANIFEST} cannot be read") from None
    if manifest.format != FORMAT:
        raise damaged(path, f"its format is '{shown(manifest.format)}' and not {FORMAT}")
    if manifest.version > VERSION:
        raise UsageError(f"{path} has version {manifest.version} and this package reads up to {VERSION}: upgrade resia")
    if not manifest.runs or manifest.runs[-1].run != manifest.run:
        raise damaged(path, f"its {MANIFEST} does not hold the log of run '{shown(manifest.run)}'")
    for kept in manifest.runs:
        if shown(kept.run) != kept.run:
            raise damaged(path, f"it has a run '{shown(kept.run)}'")
        check_run(kept.run)
        if f"streams/{kept.run}" not in manifest.members:
            raise damaged(path, f"it has no stream of run '{kept.run}'")
    for name, member in manifest.members.items():
        if name.startswith("blobs/") and name != f"blobs/{member.sha256}":
            raise damaged(path, f"its member {shown(name)} is not named by its bytes")
    return manifest

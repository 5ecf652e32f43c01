"""Content-addressed blobs in a directory: written once, named by SHA-256, verified on every read.

Whoever puts holds a shared lock on the folder, whoever sweeps an exclusive one, and a put makes bytes that are there
already young again: so a sweep never takes what was put after it looked.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from resia.events import Blob
from resia.events.errors import BlobError, boundary
from resia.events.ids import sha256

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Found(NamedTuple):
    """A file of the folder: `digest` None for what a killed writer left half written. `touched` in epoch seconds."""

    path: Path
    digest: str | None
    size: int
    touched: float


class DirectoryBlobs:
    """Implements events.Blobs over `folder`; any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """Durable when it returns: the bytes and the directory entry are synced before the name appears."""
        blob = Blob(sha256(data), len(data), media)
        path = self._place(blob)
        what = f"store blob {blob.digest[:12]} of {blob.size} bytes in {self._folder}"
        with boundary(BlobError, what), self._locked(fcntl.LOCK_SH):
            if self._intact(path, blob):
                os.utime(path)
            else:
                _write(path, data)
        return blob

    def has(self, digest: str) -> bool:
        return self.place(digest).is_file()

    def place(self, digest: str) -> Path:
        """Where a blob of this digest stands, if it does."""
        return self._folder / digest[:2] / digest

    def stored(self) -> Iterator[Found]:
        """Every file of the folder that is a blob, or was to be one; others are left alone."""
        for path in sorted(self._folder.glob("??/*")):
            known = _DIGEST.fullmatch(path.name) is not None and path.name[:2] == path.parent.name
            if path.is_file() and (known or path.name.startswith(".")):
                found = path.stat()
                yield Found(path, path.name if known else None, found.st_size, found.st_mtime)

    def sweep(self, unwanted: Iterable[Found], before: float) -> Iterator[Found]:
        """Delete those of `unwanted` that nobody has put again since `before` (epoch seconds), one by one."""
        for item in unwanted:
            with boundary(BlobError, f"delete {item.path}"), self._locked(fcntl.LOCK_EX):
                if not item.path.exists() or item.path.stat().st_mtime >= before:
                    continue
                item.path.unlink()
            yield item

    def copy_to(self, other: DirectoryBlobs, digests: Iterable[str]) -> None:
        """Put each of `digests` into `other`; BlobError when one is missing or damaged here."""
        for digest in digests:
            other.put(self.get(Blob(digest, 0)))

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def get(self, blob: Blob) -> bytes:
        path = self._place(blob)
        if not path.exists():
            raise BlobError(f"blob {blob.digest[:12]} ({blob.media}) is missing from {self._folder}")
        with boundary(BlobError, f"read blob {blob.digest[:12]}"):
            data = path.read_bytes()
        if sha256(data) != blob.digest:
            raise BlobError(f"blob {blob.digest[:12]} in {path} does not match its digest: it was changed or damaged")
        return data

    @staticmethod
    def _intact(path: Path, blob: Blob) -> bool:
        """Whether the bytes are there already; damaged ones are written again."""
        return path.exists() and path.stat().st_size == blob.size and sha256(path.read_bytes()) == blob.digest

    def path(self, blob: Blob) -> Path:
        self.get(blob)
        return self._place(blob)

    def _place(self, blob: Blob) -> Path:
        return self.place(blob.digest)


def _write(path: Path, data: bytes) -> None:
    if not path.parent.exists():
        path.parent.mkdir(exist_ok=True)
        _sync(path.parent.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """A name is durable once the folder that holds it is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

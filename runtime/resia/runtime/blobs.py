"""Content-addressed blobs in a directory: written once, named by SHA-256, verified on every read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from resia.events import Blob
from resia.events.errors import BlobError, boundary
from resia.events.ids import sha256


class DirectoryBlobs:
    """Implements events.Blobs over `folder`; any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """Durable when it returns: the bytes and the directory entry are synced before the name appears."""
        blob = Blob(sha256(data), len(data), media)
        path = self._place(blob)
        if not self._intact(path, blob):
            with boundary(BlobError, f"store blob {blob.digest[:12]} of {blob.size} bytes in {self._folder}"):
                _write(path, data)
        return blob

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
        return self._folder / blob.digest[:2] / blob.digest


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

"""Blobs that several machines share: in whatever store fsspec reaches (S3, a mount), with the folder as a cache.

A blob is in the shared store before `put` returns, under `<first two digits>/<digest>`, and is verified whenever it is
fetched. What is swept here is swept from this machine alone. fsspec is imported by the process that needs it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from resia.events import Blob
from resia.events.errors import BlobError, UsageError, boundary
from resia.events.ids import sha256

from .blobs import DirectoryBlobs


def blobs_at(folder: Path, shared: str) -> DirectoryBlobs:
    """The blobs of `folder`, and those at the fsspec URL `shared` where that is not empty."""
    return SharedBlobs(folder, shared) if shared else DirectoryBlobs(folder)


class SharedBlobs(DirectoryBlobs):
    """Implements events.Blobs over the fsspec URL `url`, for any number of machines; `folder` is this one's cache."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self._url = url.rstrip("/")
        self._files, self._root = _opened(self._url)

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """In the shared store when it returns. An object there of another size is written again."""
        blob = super().put(data, media)
        where = self._where(blob.digest)
        with boundary(BlobError, f"store blob {blob.digest[:12]} of {blob.size} bytes in {self._url}"):
            if not self._files.exists(where) or self._files.size(where) != blob.size:
                self._files.makedirs(self._files._parent(where), exist_ok=True)
                self._files.pipe_file(where, data)
        return blob

    def has(self, digest: str) -> bool:
        if super().has(digest):
            return True
        with boundary(BlobError, f"look for blob {digest[:12]} in {self._url}"):
            return bool(self._files.exists(self._where(digest)))

    def get(self, blob: Blob) -> bytes:
        """From the cache, or fetched into it. BlobError when it is nowhere whole."""
        with suppress(BlobError):  # not here, or damaged here
            return super().get(blob)
        where = self._where(blob.digest)
        with boundary(BlobError, f"read blob {blob.digest[:12]} from {self._url}"):
            found: bytes | None = self._files.cat_file(where) if self._files.exists(where) else None
        if found is None:
            raise BlobError(f"blob {blob.digest[:12]} ({blob.media}) is missing from {self._url}")
        if sha256(found) != blob.digest:
            raise BlobError(f"blob {blob.digest[:12]} in {self._url} does not match its digest: it was changed")
        super().put(found, blob.media)
        return found

    def _where(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _opened(url: str) -> tuple[Any, str]:
    """The file system and the folder that `url` names. UsageError when this process lacks what it needs for it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UsageError(f"blobs at {url} need fsspec: pip install 'resia[shared]'") from None
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as cause:  # s3:// without s3fs, or a protocol that nobody knows
        raise UsageError(f"blobs at {url} cannot be reached: {cause}") from None
    return files, str(root).rstrip("/")

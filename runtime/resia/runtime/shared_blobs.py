"""Blobs that several machines share, with the folder as a cache: in whatever store fsspec reaches (S3, a mount), or in
the object store of the log's own servers.

A blob is in the shared store before `put` returns, and is verified whenever it is fetched. What is swept here is swept
from this machine alone. fsspec is imported by the process that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from resia.events import Blob
from resia.events.errors import BlobError, BusError, UsageError, boundary
from resia.events.ids import sha256

from .blobs import DirectoryBlobs
from .object_shelf import ObjectShelf
from .permissions import JETSTREAM, Access


class Shelf(Protocol):
    """Where all machines look: bytes under their digest, which are never changed. Errors are whatever it raises."""

    place: str  # for messages

    def size(self, digest: str) -> int | None:
        """Bytes that are there under `digest`, None where nothing is."""
        ...

    def write(self, digest: str, data: bytes) -> None:
        """`data` is durable when this returns."""
        ...

    def read(self, digest: str) -> bytes | None:
        """What is there under `digest`, unverified; None where nothing is."""
        ...


def blobs_at(folder: Path, access: Access | None) -> DirectoryBlobs:
    """The blobs of `folder`, and those where `access` says that they are shared, if it does."""
    if access is None or not access.blobs:
        return DirectoryBlobs(folder)
    return SharedBlobs(folder, ObjectShelf(access) if access.blobs == JETSTREAM else FileShelf(access.blobs))


class SharedBlobs(DirectoryBlobs):
    """Implements events.Blobs over `shelf`, for any number of machines; `folder` is this one's cache."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        super().__init__(folder)
        self._shelf = shelf

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """In the shared store when it returns. An object there of another size is written again."""
        blob = super().put(data, media)
        with self._tried(f"store blob {blob.digest[:12]} of {blob.size} bytes in {self._shelf.place}"):
            if self._shelf.size(blob.digest) != blob.size:
                self._shelf.write(blob.digest, data)
        return blob

    def has(self, digest: str) -> bool:
        if super().has(digest):
            return True
        with self._tried(f"look for blob {digest[:12]} in {self._shelf.place}"):
            return self._shelf.size(digest) is not None

    def get(self, blob: Blob) -> bytes:
        """From the cache, or fetched into it. BlobError when it is nowhere whole."""
        with suppress(BlobError):  # not here, or damaged here
            return super().get(blob)
        with self._tried(f"read blob {blob.digest[:12]} from {self._shelf.place}"):
            found = self._shelf.read(blob.digest)
        if found is None:
            raise BlobError(f"blob {blob.digest[:12]} ({blob.media}) is missing from {self._shelf.place}")
        if sha256(found) != blob.digest:
            raise BlobError(
                f"blob {blob.digest[:12]} in {self._shelf.place} does not match its digest: it was changed or damaged"
            )
        super().put(found, blob.media)
        return found

    @contextmanager
    def _tried(self, what: str) -> Iterator[None]:
        with boundary(BlobError, what):
            try:
                yield
            except BusError as cause:  # to whoever stores a blob it is no word on the log
                raise BlobError(f"{what}: {cause}") from cause


class FileShelf:
    """Implements Shelf over the fsspec URL `url`: a file a blob, `<first two digits>/<digest>`.

    UsageError when this process lacks what it needs for it.
    """

    def __init__(self, url: str) -> None:
        self.place = _shown(url)
        self._files, self._root = _opened(url.rstrip("/"))
        # fsspec writes a file of a mount in place, and syncs nothing.
        self._mount = DirectoryBlobs(Path(self._root)) if "file" in self._files.protocol else None

    def size(self, digest: str) -> int | None:
        """See Shelf."""
        where = self._where(digest)
        return int(self._files.size(where)) if self._files.exists(where) else None

    def write(self, digest: str, data: bytes) -> None:
        """See Shelf."""
        if self._mount is not None:
            self._mount.put(data)
            return
        where = self._where(digest)
        self._files.makedirs(self._files._parent(where), exist_ok=True)
        self._files.pipe_file(where, data)

    def read(self, digest: str) -> bytes | None:
        """See Shelf."""
        where = self._where(digest)
        found: bytes | None = self._files.cat_file(where) if self._files.exists(where) else None
        return found

    def _where(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def _opened(url: str) -> tuple[Any, str]:
    """The file system and the folder that `url` names."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UsageError(f"blobs at {_shown(url)} need fsspec: pip install 'resia[shared]'") from None
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as cause:  # s3:// without s3fs, or a protocol that nobody knows
        raise UsageError(f"blobs at {_shown(url)} cannot be reached: {cause}") from None
    return files, str(root).rstrip("/")


def _shown(url: str) -> str:
    """For messages: without a user and a password, which an fsspec URL may have before its path."""
    scheme, mark, rest = url.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"

"""Blobs over a store that is never written to: what is put goes to a temporary folder and is read from there first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from resia.events import Blob, Blobs
from resia.events.errors import BlobError, boundary
from resia.events.ids import sha256


class OverlayBlobs:
    """Implements events.Blobs over `below`. A context manager: what was put is gone when it is left."""

    def __init__(self, below: Blobs) -> None:
        self._below = below
        self._folder = tempfile.TemporaryDirectory(prefix="resia-replay-")

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob:
        """Not durable: a replay that is interrupted is begun again."""
        blob = Blob(sha256(data), len(data), media)
        with boundary(BlobError, f"keep blob {blob.digest[:12]} of {blob.size} bytes in {self._folder.name}"):
            self._place(blob).write_bytes(data)
        return blob

    def get(self, blob: Blob) -> bytes:
        place = self._place(blob)
        return place.read_bytes() if place.exists() else self._below.get(blob)

    def path(self, blob: Blob) -> Path:
        place = self._place(blob)
        return place if place.exists() else self._below.path(blob)

    def _place(self, blob: Blob) -> Path:
        return Path(self._folder.name) / blob.digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

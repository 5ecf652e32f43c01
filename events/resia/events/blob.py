"""Content-addressed bytes that are too large for an event (over 32 KiB), and the port that stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec


class Blob(msgspec.Struct, frozen=True, gc=False):
    """Reference to stored bytes: `digest` is their SHA-256 in hex, `size` in bytes."""

    digest: str
    size: int
    media: str = "application/octet-stream"


class Blobs(Protocol):
    """A store of immutable bytes. `put` returns only when the bytes are durable."""

    def put(self, data: bytes, media: str = "application/octet-stream") -> Blob: ...

    def get(self, blob: Blob) -> bytes:
        """Bytes of `blob`; raises BlobError when missing or when they do not match the digest."""
        ...

    def path(self, blob: Blob) -> Path:
        """A local file with exactly these bytes, verified; never to be written to."""
        ...

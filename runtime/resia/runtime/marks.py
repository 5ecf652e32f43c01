"""Which blobs a log names, read generously: whatever looks like a digest anywhere in a message counts.

A fact of a foreign namespace, or of a package that is yet to come, may name a blob in a way that nobody here knows;
it can only do so by the 64 hex digits of its digest.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from resia.events import Blob, Fact, Logged
from resia.replay.verify import blobs_named

from .blobs import DirectoryBlobs

_DIGITS = b"0123456789abcdef"
_ONLY_DIGITS = bytes(byte if byte in _DIGITS else 0x20 for byte in range(256))
_CHARS = 64


def digests_in(data: bytes) -> set[str]:
    """Everything in a message that may be a blob's digest, escaped or not, and inside longer runs of digits too."""
    if b"\\u" in data:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            data += b" " + msgspec.json.encode(msgspec.json.decode(data))
    runs = [run for run in data.translate(_ONLY_DIGITS).split() if len(run) >= _CHARS]
    return {run[at : at + _CHARS].decode() for run in runs for at in range(len(run) - _CHARS + 1)}


class Named:
    """Blobs that logs name: `required` by an event's own fields, `other` by text that only looks like a digest."""

    def __init__(self) -> None:
        self.required: dict[str, Blob] = {}
        self.other: set[str] = set()

    def take(self, data: bytes, fact: Logged) -> None:
        """A message's bytes, and what it says."""
        if isinstance(fact, Fact):
            self.required |= {blob.digest: blob for blob in blobs_named(fact.event)}
        self.other |= digests_in(data)

    def sizes(self, blobs: DirectoryBlobs) -> dict[str, int]:
        """Bytes of each that can be kept, all of them read and verified.

        BlobError where an event names one that is missing or damaged.
        """
        found = {blob.digest: len(blobs.get(blob)) for blob in self.required.values()}
        looks = self.other - self.required.keys()
        found |= {each: len(blobs.get(Blob(each, 0))) for each in looks if blobs.has(each)}
        return dict(sorted(found.items()))

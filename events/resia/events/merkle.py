"""Merkle root over a span of the log (RFC 6962 hashing: leaves and nodes are hashed under different prefixes)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

_PREFIX = struct.Struct(">BQI").pack  # 0 for a leaf, number, length of the subject


def leaf(sequence: int, subject: str, data: bytes) -> str:
    """Hex hash of one stored message, bound to its number and subject."""
    name = subject.encode()
    digest = hashlib.sha256(_PREFIX(0, sequence, len(subject)) + name)
    digest.update(data)  # and not joined to the rest, which would copy it
    return digest.hexdigest()


def root(leaves: Sequence[str]) -> str:
    """Hex root of hex `leaves`; the root of nothing is the hash of nothing (RFC 6962, 2.1)."""
    if not leaves:
        return hashlib.sha256(b"").hexdigest()
    level = [bytes.fromhex(x) for x in leaves]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex()

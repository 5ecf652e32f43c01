"""Identifiers and seeds, all derived and none drawn: the same cause gives the same id, for ever.

An event id is a hash of (run, cause, handler, ordinal), so doing a thing twice appends once.
A seed is a hash of the run's seed and the *name* of what it is for, never of an event id, so two runs
with one seed and different names sample the same tokens.
"""

from __future__ import annotations

import hashlib

ID_CHARS = 26
SEED_BITS = 63


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def _hash(*parts: str | int) -> bytes:
    """SHA-256 over length-prefixed parts, so ('ab','c') and ('a','bc') differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def event_id(run: str, cause: str, handler: str, ordinal: int) -> str:
    """Id of the `ordinal`-th event that `handler` emits for `cause`; 26 hex characters (104 bits)."""
    return _hash("event", run, cause, handler, ordinal).hex()[:ID_CHARS]


def seed_for(root: int, *name: str | int) -> int:
    """Seed in [0, 2**63) for the thing called `name` under the run seed `root`."""
    return int.from_bytes(_hash("seed", root, *name)[:8], "big") >> (64 - SEED_BITS)

"""What both sides of the sandbox agree on: frames of JSON, orders to the fork server, and the exit codes.

A frame is a 4-byte big-endian length and that many bytes of JSON. An order is a verb and a process id, and is
answered before the next one is given. Standard library alone: the inside has nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

HEADER = struct.Struct("!I")
ORDER = struct.Struct("!ci")
SPAWNED = struct.Struct("!i")
REAPED = struct.Struct("!id")
SPAWN, REAP = b"S", b"R"
EXIT_MEMORY = 42
FILENAME = "<generated>"


class Setup(NamedTuple):
    """What the inside is told once, at its start: `cpu_s` in seconds, sizes in bytes."""

    confined: bool
    cpu_s: int
    memory_bytes: int
    message_bytes: int
    open_files: int


class TooLarge(ValueError):
    """A frame that announces more than the limit; none of it was read."""


def frame(payload: bytes) -> bytes:
    """`payload` behind its length."""
    return HEADER.pack(len(payload)) + payload


def exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """`size` bytes from `read`, which returns at most as many as asked. EOFError when it ends before."""
    parts = bytearray()
    while len(parts) < size:
        part = read(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def unframe(read: Callable[[int], bytes], limit: int) -> bytes:
    """The payload of the next frame. EOFError when the other side is gone, TooLarge beyond `limit` bytes."""
    (size,) = HEADER.unpack(exactly(read, HEADER.size))
    if size > limit:
        raise TooLarge(f"a message of {size} bytes, more than {limit}")
    return exactly(read, size)

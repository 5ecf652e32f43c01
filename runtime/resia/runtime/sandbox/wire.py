"""What both sides of the sandbox agree on: frames of JSON, orders to the fork server, and the exit codes.

A frame is a 4-byte big-endian length and that many bytes of JSON. An order is a verb and a process id; only REAP is
answered. Guests come over a socket of their own, a process id with the socket that leads to it. Standard library
alone: the inside has nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

HEADER = struct.Struct("!I")
ORDER = struct.Struct("!ci")
GUEST = struct.Struct("!i")
REAPED = struct.Struct("!id")
# One more guest at once; end a guest whose outcome is known; end a guest and say how it ended.
MORE, END, REAP = b"M", b"E", b"R"
EXIT_MEMORY = 42
FILENAME = "<generated>"


class Bait(NamedTuple):
    """What is there for the sandbox's maker and must not be there inside: a file, and a listening address."""

    secret: str
    host: str
    port: int


class Setup(NamedTuple):
    """What the inside is told once, at its start: `cpu_s` in seconds, sizes in bytes, `warm` guests kept waiting.

    `bait` is what the fork server reaches for before it locks itself, None where nothing but the locks is tried.
    """

    confined: bool
    cpu_s: int
    memory_bytes: int
    message_bytes: int
    open_files: int
    warm: int
    bait: Bait | None = None


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

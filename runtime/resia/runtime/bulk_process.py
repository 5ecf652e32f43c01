"""Bulk reading in a process of its own, which splits while this one decodes and folds.

Run as `python -m resia.runtime.bulk_process` on a socket: what to read comes in, and frames go out, each four bytes of
length and then a list in MessagePack.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from .bulk import Address, BulkUnavailable, stored

_SOCKET_BYTES = 2**20
_LENGTH = struct.Struct(">I")

Message = tuple[int, str, bytes]  # number, subject, bytes
_frames = msgspec.msgpack.Decoder(list[Message])


class _Task(NamedTuple):
    address: Address
    stream: str
    first: int
    last: int
    inbox: str


async def elsewhere(
    address: Address, stream: str, first: int, last: int, inbox: str
) -> AsyncGenerator[list[Message], None]:
    """Messages `first` to `last` or further, as `bulk.stored` gives them. Raises BulkUnavailable."""
    process, ours = _start()
    reader, writer = await asyncio.open_connection(sock=ours, limit=4 * _SOCKET_BYTES)
    try:
        writer.write(msgspec.json.encode(_Task(address, stream, first, last, inbox)))
        writer.write_eof()
        reached = first - 1
        while reached < last:
            frame = _frames.decode(await _frame(reader))
            reached = frame[-1][0]
            yield frame
    finally:
        writer.close()
        process.kill()
        process.wait()


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and the socket on which to talk to it."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    command = [sys.executable, "-P", "-m", __name__]  # -P: no file of the present folder may stand for a module
    with theirs:
        try:
            return subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno()), ours
        except OSError as cause:
            ours.close()
            raise BulkUnavailable(f"no process to read in bulk: {cause}") from cause


async def _frame(reader: asyncio.StreamReader) -> bytes:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as cause:
        raise BulkUnavailable("the process that reads in bulk ended too early") from cause


async def _serve(task: _Task) -> None:
    encode, out = msgspec.msgpack.Encoder().encode, sys.stdout.buffer
    async with aclosing(stored(task.address, task.stream, task.first, task.inbox)) as chunks:
        async for chunk in chunks:
            frame = encode([(number, subject, data) for number, subject, data, _ in chunk])
            out.write(_LENGTH.pack(len(frame)))
            out.write(frame)
            out.flush()
            if chunk[-1].sequence >= task.last:
                return


def main() -> int:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=_Task)
    try:
        asyncio.run(_serve(task))
    except (BulkUnavailable, ConnectionError) as cause:
        sys.stderr.write(f"{cause}\n" if isinstance(cause, BulkUnavailable) else "")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

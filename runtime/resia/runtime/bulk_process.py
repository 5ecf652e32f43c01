"""Bulk reading in a process of its own, which splits while this one decodes and folds.

Run as `python -m resia.runtime.bulk_process`: what to read is on standard input, and frames go to standard output,
four bytes of length and then a list in MessagePack.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import NamedTuple

import msgspec

from .bulk import Address, BulkUnavailable, stored

FRAME_LIMIT = 2**26
_PIPE_BYTES = 2**20
_LENGTH = struct.Struct(">I")


Message = tuple[int, str, bytes]  # number, subject, bytes


class _Task(NamedTuple):
    address: Address
    stream: str
    first: int
    last: int
    inbox: str


_frames = msgspec.msgpack.Decoder(list[Message])


async def elsewhere(
    address: Address, stream: str, first: int, last: int, inbox: str
) -> AsyncGenerator[list[Message], None]:
    """Messages `first` to `last` or further, as `bulk.stored` gives them. Raises BulkUnavailable."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, limit=4 * _PIPE_BYTES
        )
    except OSError as cause:
        raise BulkUnavailable(f"no process to read in bulk: {cause}") from cause
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(_Task(address, stream, first, last, inbox)))
        process.stdin.write_eof()
        while frame := await _frame(process):
            yield _frames.decode(frame)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _frame(process: Process) -> bytes:
    """The next frame, empty after the last."""
    assert process.stdout is not None
    try:
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        return await process.stdout.readexactly(length)
    except asyncio.IncompleteReadError as cause:
        if cause.partial or await process.wait() != 0:
            raise BulkUnavailable("the process that reads in bulk ended too early") from cause
        return b""


async def _serve(task: _Task) -> None:
    encode = msgspec.msgpack.Encoder().encode
    out = sys.stdout.buffer
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # no more is allowed here: slower, and right all the same
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
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
    except (BulkUnavailable, BrokenPipeError) as cause:
        sys.stderr.write(f"{cause}\n" if isinstance(cause, BulkUnavailable) else "")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A run's stream copied whole by the server itself: numbers and times bit for bit, in the server's own format.

`take` writes a snapshot to a file, `put_back` makes the stream again from one. Both need the admin credential. What a
snapshot holds is known only once a server has read it: `archive` has it restored on a server of its own.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from resia.events import subjects as names
from resia.events.errors import BusError, UsageError

from .bus import Bus
from .records import QUIET_S, Progress, call

TAKEN_BYTES = 256 << 10  # under every server's largest message
# The server syncs each message while it restores, and gives up on a piece that it has not dealt with in 5 s. This much
# is a few thousand messages at most, however well they were compressed.
GIVEN_BYTES = 16 << 10
_FOREIGN = ("sources", "mirror", "republish", "subject_transform")


class Copied(msgspec.Struct, frozen=True):
    """What the server says of a copied stream, and wants to hear again: its configuration and its state."""

    config: dict[str, Any]
    state: dict[str, Any]


async def take(bus: Bus, run: str, path: Path, progress: Progress) -> Copied:
    """Write the stream of `run` as it is now to `path`; messages that come later are not in it."""
    stream, inbox, what = names.stream(run), bus.inbox(), f"copy the log of run '{run}'"
    asked = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": TAKEN_BYTES, "jsck": True}
    done = 0
    async with bus.listen(inbox) as heard:
        answer = await call(bus, f"STREAM.SNAPSHOT.{stream}", msgspec.json.encode(asked), what)
        total = int(answer["state"]["bytes"])
        with path.open("wb") as sink:
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        chunk = await anext(heard)
                except TimeoutError:
                    raise BusError(f"{what}: nothing came for {QUIET_S:g} s") from None
                if not chunk.data:
                    break
                sink.write(chunk.data)
                done += len(chunk.data)
                progress(what, done, total)
                if chunk.reply:  # without it the server stops after a window of chunks
                    await bus.publish(chunk.reply, b"")
    return Copied(answer["config"], answer["state"])


async def put_back(bus: Bus, run: str, path: Path, copied: Copied, progress: Progress) -> None:
    """Make the stream of `run` from a snapshot; BusError leaves none. UsageError for a copy of anything else."""
    check_config(run, copied)
    what, done = f"restore the log of run '{run}'", 0
    service = f"STREAM.RESTORE.{names.stream(run)}"
    answer = await call(bus, service, msgspec.json.encode(copied), what)
    target = str(answer["deliver_subject"])
    with path.open("rb") as source:
        total = os.fstat(source.fileno()).st_size
        while chunk := source.read(GIVEN_BYTES):
            refusal = await bus.request(target, chunk)
            if refusal:
                raise BusError(f"{what}: {_said(refusal)}")
            done += len(chunk)
            progress(what, done, total)
    end = await bus.request(target, b"", timeout=QUIET_S * 4)  # the server reads all of it before it answers
    if b'"error"' in end:
        raise BusError(f"{what}: {_said(end)}")


def check_config(run: str, copied: Copied) -> None:
    """Raise UsageError unless this is the configuration of a run's own stream and no other's."""
    config = copied.config
    own = config.get("name") == names.stream(run) and config.get("subjects") == [names.all_events(run)]
    foreign = [key for key in _FOREIGN if config.get(key)]
    if not own or foreign:
        raise UsageError(f"the archived stream is not a log of run '{run}': it has other subjects or sources")


async def delete(bus: Bus, run: str) -> None:
    """Take the stream of `run` away for good."""
    await call(bus, f"STREAM.DELETE.{names.stream(run)}", b"", f"remove the log of run '{run}'")


async def streams(bus: Bus) -> list[str]:
    """The runs that have a stream on the server, registered or not."""
    found: list[str] = []
    while True:
        asked = msgspec.json.encode({"offset": len(found)})
        answer = await call(bus, "STREAM.NAMES", asked, "list the streams")
        page: list[str] = answer.get("streams") or []
        found += page
        if not page or len(found) >= int(answer["total"]):
            break
    return [name.removeprefix(names.STREAM_PREFIX) for name in found if name.startswith(names.STREAM_PREFIX)]


def _said(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer, type=dict)["error"]["description"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return answer[:200].decode(errors="replace")

"""A run as a JSON-lines file: a header, one line an event with its exact bytes, and a footer that closes it.

    {"format":"resia-export","version":1,"run":...,"package":...,"parents":[...]}
    {"sequence":1,"subject":"resia.<run>....","time":"2026-...Z","leaf":"<hash>","event":<the message, verbatim>}
    {"events":...,"merkle_root":...,"runs":[{"run":...,"events":...,"merkle_root":...}],"sha256":...}

A fork's file holds its ancestors first, the oldest at the top. `base64` stands instead of `event` where a message is
not JSON on one line. `sha256` is over every byte before the footer; `leaf` names the line that was changed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from resia.events import merkle
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.errors import UsageError

from .bus import Bus
from .marks import Named
from .records import Progress, Record, lineage, records
from .resources import package_version

FORMAT, VERSION = "resia-export", 1
MAX_LINE = 2 * MAX_EVENT_BYTES
_NS = 1_000_000_000


class Header(msgspec.Struct, frozen=True):
    """Which run the file is of; `parents` are its ancestors in the file, the oldest first."""

    format: str
    version: int
    run: str
    package: str
    parents: tuple[str, ...] = ()


class Section(msgspec.Struct, frozen=True):
    """One run of the file: how many events, and the Merkle root of all their leaves."""

    run: str
    events: int
    merkle_root: str


class Footer(msgspec.Struct, frozen=True):
    """What the file holds in all; `sha256` is of the bytes before this line, empty in a format with checksums."""

    events: int
    merkle_root: str
    runs: tuple[Section, ...]
    sha256: str = ""


class Row(msgspec.Struct, frozen=True):
    """One event of a file, with the hash that the file gives for it; `where` names the place to a person."""

    where: str
    record: Record
    leaf: str


class _Line(msgspec.Struct, frozen=True):
    sequence: int
    subject: str
    time: str
    leaf: str
    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    base64: str | msgspec.UnsetType = msgspec.UNSET


_line_decoder = msgspec.json.Decoder(_Line)


class Totals:
    """Adds up sections while their events pass by."""

    def __init__(self) -> None:
        self._leaves: dict[str, list[str]] = {}

    def take(self, run: str, leaf: str) -> None:
        self._leaves.setdefault(run, []).append(leaf)

    def leaves(self, run: str) -> list[str]:
        return self._leaves.get(run, [])

    def footer(self, sha256: str = "") -> Footer:
        every = [leaf for leaves in self._leaves.values() for leaf in leaves]
        runs = tuple(Section(run, len(leaves), merkle.root(leaves)) for run, leaves in self._leaves.items())
        return Footer(len(every), merkle.root(every), runs, sha256)


async def write_jsonl(bus: Bus, run: str, sink: IO[bytes], progress: Progress, named: Named | None = None) -> Footer:
    """Write `run` and its ancestors as they are now; `named` is told which blobs they name."""
    links = await lineage(bus, run)
    hashed, totals = hashlib.sha256(), Totals()

    def put(line: bytes) -> None:
        hashed.update(line)
        sink.write(line)

    header = Header(FORMAT, VERSION, run, package_version(), tuple(link.run for link in links[:-1]))
    put(msgspec.json.encode(header) + b"\n")
    for link in links:
        async for record in records(bus, link.run, link.events):
            check_subject(link.run, record)
            leaf = record.leaf
            totals.take(link.run, leaf)
            put(encode_line(record, leaf))
            if named is not None:
                named.take(record.data, record.logged(link.run))
            progress(f"export of '{link.run}'", record.sequence, link.events)
    footer = totals.footer(hashed.hexdigest())
    sink.write(msgspec.json.encode(footer) + b"\n")
    sink.flush()
    return footer


def check_subject(run: str, record: Record) -> None:
    """Raise UsageError for a message that was carried into the log from elsewhere: no append could bring it back."""
    if not record.subject.startswith(f"resia.{run}."):
        raise UsageError(
            f"event {record.sequence} of run '{run}' stands on subject '{record.subject[:80]}', which no import can"
            " write: take resia archive, which keeps a stream as it is"
        )


def encode_line(record: Record, leaf: str) -> bytes:
    """The event's line. The message itself is pasted in where a reader gets exactly its bytes back."""
    head = b'{"sequence":%d,"subject":%b,"time":"%b","leaf":"%b",' % (
        record.sequence,
        msgspec.json.encode(record.subject),
        time_text(record.time_ns).encode(),
        leaf.encode(),
    )
    if b"\n" not in record.data:
        line = b'%b"event":%b}\n' % (head, record.data)
        if _gives_back(line, record.data):
            return line
    return b'%b"base64":"%b"}\n' % (head, base64.b64encode(record.data))


def _gives_back(line: bytes, data: bytes) -> bool:
    try:
        line.decode()
        msgspec.json.decode(data)  # whole JSON, and nothing beside it
        event = _line_decoder.decode(line).event
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(event, msgspec.Raw) and bytes(event) == data


def time_text(time_ns: int) -> str:
    """RFC 3339 in UTC, to the nanosecond."""
    seconds, rest = divmod(time_ns, _NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def read_jsonl(path: Path) -> Iterator[Header | Row | Footer]:
    """Header, rows and footer of a file; UsageError names the first line that is not what was exported."""
    hashed, number, event = hashlib.sha256(), 0, ""
    with path.open("rb") as source:
        while line := source.readline(MAX_LINE):
            number += 1
            if number == 1:
                yield _header(path, line)
            elif line.startswith(b'{"events"'):
                yield _footer(path, number, line, hashed.hexdigest(), source.read(1))
                return
            else:
                row = _row(path, number, line)
                event = f" (event {row.record.sequence})"
                yield row
            hashed.update(line)
    raise unusable(path, f"it ends after line {number}{event} without its footer, so it was cut off")


def unusable(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} cannot be imported: {why}; export the run again")


def shown(text: str, limit: int = 80) -> str:
    """Text of a file as a message may print it: short, and nothing that moves a terminal's cursor."""
    return re.sub(r"[^\x20-\x7e]", "?", text[:limit])


def _header(path: Path, line: bytes) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise unusable(path, "line 1 is not the header of an export") from None
    return check_header(path, header)


def check_header(path: Path, header: Header) -> Header:
    if header.format != FORMAT:
        raise unusable(path, f"its format is '{shown(header.format)}' and not {FORMAT}")
    if header.version > VERSION:
        raise UsageError(f"{path} has version {header.version} and this package reads up to {VERSION}: upgrade resia")
    return header


def _footer(path: Path, number: int, line: bytes, sha256: str, after: bytes) -> Footer:
    try:
        footer = msgspec.json.decode(line, type=Footer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise unusable(path, f"line {number}, the footer, is not whole") from None
    if msgspec.json.encode(footer) != line.removesuffix(b"\n"):
        raise unusable(path, f"line {number}, the footer, was changed")
    if footer.sha256 != sha256:
        raise unusable(path, f"its lines do not match the SHA-256 in line {number}, the footer, so it was changed")
    if after or not line.endswith(b"\n"):
        raise unusable(path, f"line {number}, the footer, is not where the file ends")
    return footer


def _row(path: Path, number: int, line: bytes) -> Row:
    where = f"line {number}"
    try:
        found = _line_decoder.decode(line)
        data = base64.b64decode(found.base64, validate=True) if isinstance(found.base64, str) else found.event
        if isinstance(data, msgspec.UnsetType) or isinstance(found.event, msgspec.Raw) == isinstance(found.base64, str):
            raise unusable(path, f"{where} needs either event or base64")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise unusable(path, f"{where} is no event of an export: it was changed or cut off") from None
    return Row(f"{where} (event {found.sequence})", Record(found.sequence, found.subject, bytes(data)), found.leaf)

"""An exported run back into a log: the whole file is checked first, then written, then read back and compared.

Numbers, subjects and bytes are the file's; the server's times are new. A run that is there already is compared and
left alone. An import that was interrupted is marked as such and goes on when it is asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resia.events import Draft, Parent
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.errors import BusError, UsageError
from resia.events.subjects import check_run
from resia.replay.fork import parent_of

from .blobs import DirectoryBlobs
from .bus import BATCH_LIMIT, Bus
from .export import Footer, Header, Row, Section, Totals, read_jsonl, shown, unusable
from .export_parquet import read_parquet
from .protocol import IMPORTED, IMPORTING
from .records import Progress, Record, Tally, tally
from .store import check_not_removed

BATCH_BYTES = 16 << 20
_SUBJECT = re.compile(r"[\x21-\x29\x2b-\x2d\x2f-\x3d\x3f-\x7e]+(\.[\x21-\x29\x2b-\x2d\x2f-\x3d\x3f-\x7e]+)*")


class Survey(NamedTuple):
    """What a sound file holds: leaves and parent of each run, the oldest ancestor first, the exported run last."""

    path: Path
    runs: tuple[str, ...]
    leaves: dict[str, list[str]]
    parents: dict[str, Parent | None]
    roots: dict[str, str]


class Imported(NamedTuple):
    """What came of an import: events written by run, and how the exported run stands."""

    run: str
    written: dict[str, int]
    events: int
    status: str


def rows_of(path: Path) -> Iterator[Header | Row | Footer]:
    """Header, rows and footer of an export of either format."""
    try:
        with path.open("rb") as source:
            magic = source.read(4)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror}") from None
    if not magic:
        raise unusable(path, "it is empty")
    return read_parquet(path) if magic == b"PAR1" else read_jsonl(path)


def survey(path: Path) -> Survey:
    """Check a whole file. UsageError names the line or event that is not as it was exported."""
    parts = rows_of(path)
    header = next(parts)
    assert isinstance(header, Header), "a reader gives the header first"
    check = _Check(path, header)
    for part in parts:
        if isinstance(part, Footer):
            return check.close(part)
        if isinstance(part, Row):
            check.take(part)
    raise unusable(path, "it has no footer")


class _Check:
    """One pass over a file's rows."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._order = [*header.parents, header.run]
        for run in self._order:
            if shown(run) != run:
                raise unusable(path, f"its header names a run '{shown(run)}'")
            check_run(run)
        if len(set(self._order)) != len(self._order):
            raise unusable(path, "its header names a run twice")
        self._totals = Totals()
        self._parents: dict[str, Parent | None] = {}
        self._subjects: set[str] = set()
        self._at = -1
        self._next = 1

    def take(self, row: Row) -> None:
        record = row.record
        run = _run_of(record.subject)
        if self._at < 0 or run != self._order[self._at]:
            self._begin(row, run)
        if record.sequence != self._next:
            raise unusable(self._path, f"{row.where} should be event {self._next} of run '{run}'")
        if record.leaf != row.leaf:
            raise unusable(self._path, f"{row.where} does not match its hash, so it was changed")
        if len(record.data) > MAX_EVENT_BYTES or not _SUBJECT.fullmatch(record.subject):
            raise unusable(self._path, f"{row.where} is no message that a log can hold")
        if record.subject in self._subjects:
            raise UsageError(
                f"{self._path} cannot be imported: {row.where} has the subject of an earlier event, which a log takes"
                " once: take resia archive and restore, which keep a stream as it is"
            )
        self._subjects.add(record.subject)
        self._totals.take(run, row.leaf)
        self._next += 1

    def _begin(self, row: Row, run: str) -> None:
        """The first row of the next run: what it names as parent must be the run before it."""
        self._at, self._next = self._at + 1, 1
        if self._at >= len(self._order) or run != self._order[self._at]:
            expected = self._order[self._at] if self._at < len(self._order) else "none"
            raise unusable(
                self._path, f"{row.where} is of run '{shown(run)}' where its header lets expect '{expected}'"
            )
        self._subjects.clear()
        parent = parent_of(row.record.logged(run))
        before = self._order[self._at - 1] if self._at else None
        if (parent.run if parent else None) != before:
            raise unusable(self._path, f"{row.where} begins run '{run}', whose parent is not the run before it")
        self._parents[run] = parent

    def close(self, footer: Footer) -> Survey:
        found = self._totals.footer(footer.sha256)
        if found != footer or self._at != len(self._order) - 1:
            raise unusable(
                self._path,
                f"it holds {found.events} events and its footer promises {_described(footer)}: cut or changed",
            )
        leaves = {run: self._totals.leaves(run) for run in self._order}
        roots = {section.run: section.merkle_root for section in footer.runs}
        return Survey(self._path, tuple(self._order), leaves, self._parents, roots)


def _run_of(subject: str) -> str:
    prefix, _, rest = subject.partition(".")
    return rest.partition(".")[0] if prefix == "resia" else ""


def _described(footer: Footer) -> str:
    def one(section: Section) -> str:
        return f"{section.events} of run '{shown(section.run)}'"

    return " and ".join(one(section) for section in footer.runs) or "none"


def blobs_beside(path: Path) -> Path:
    """The folder of blobs that goes with an export, where there is one."""
    return path.with_name(f"{path.name}.blobs")


async def import_file(bus: Bus, blobs: DirectoryBlobs, path: Path, progress: Progress) -> Imported:
    """`import_surveyed` of `path`, which is checked first; UsageError leaves the log as it was."""
    return await import_surveyed(bus, blobs, survey(path), progress)


async def import_surveyed(bus: Bus, blobs: DirectoryBlobs, found: Survey, progress: Progress) -> Imported:
    """Import a sound file, and the blobs beside it, into the log; needs the admin credential.

    UsageError and BlobError leave the log as it was.
    """
    path = found.path
    begun = {run: await _present(bus, found, run) for run in found.runs}
    if blobs_beside(path).is_dir():
        beside = DirectoryBlobs(blobs_beside(path))
        beside.copy_to(blobs, [item.digest for item in beside.stored() if item.digest])
    written: dict[str, int] = {}
    for run in found.runs:
        there = begun[run]
        if there is None or there < len(found.leaves[run]):
            if there is None:
                await bus.create_run(run, IMPORTING)
            await _write(bus, path, run, there or 0, len(found.leaves[run]), progress)
            written[run] = len(found.leaves[run]) - (there or 0)
        entry = await bus.find_run(run)
        if entry is not None and entry.status == IMPORTING:
            await _close(bus, run, found.roots[run])
    entry = await bus.find_run(found.runs[-1])
    return Imported(found.runs[-1], written, len(found.leaves[found.runs[-1]]), entry.status if entry else IMPORTED)


async def _present(bus: Bus, found: Survey, run: str) -> int | None:
    """How much of `run` is here already (None: the name is free); UsageError when it differs from the file's."""
    entry = await bus.find_run(run)
    if entry is None:
        return None
    check_not_removed(entry)
    mine, theirs = found.leaves[run], (await tally(bus, run)).leaves
    for number, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
        if a != b:
            raise UsageError(
                f"run '{run}' is here already and its event {number} is not the one in {found.path}: import it into"
                " another store"
            )
    if entry.status == IMPORTING and len(theirs) <= len(mine):
        return len(theirs)
    if len(theirs) != len(mine) and (run == found.runs[-1] or min(len(theirs), len(mine)) < _needed(found, run)):
        raise UsageError(
            f"run '{run}' is here already with {len(theirs)} events and {found.path} has {len(mine)}: import it into"
            " another store"
        )
    return len(mine)


def _needed(found: Survey, run: str) -> int:
    """The ancestor's events that its child in the file builds on."""
    child = found.parents[found.runs[found.runs.index(run) + 1]]
    return child.sequence if child else 0


async def _write(bus: Bus, path: Path, run: str, after: int, last: int, progress: Progress) -> None:
    """Append the file's events `after` + 1 to `last` in atomic batches, under their own numbers."""
    batch: list[Record] = []
    size = 0
    for part in rows_of(path):
        if not isinstance(part, Row) or _run_of(part.record.subject) != run or part.record.sequence <= after:
            continue
        if batch and (len(batch) == BATCH_LIMIT or size + len(part.record.data) > BATCH_BYTES):
            await _append(bus, run, batch)
            batch, size = [], 0
            progress(f"import of '{run}'", part.record.sequence - 1, last)
        batch.append(part.record)
        size += len(part.record.data)
    if batch:
        await _append(bus, run, batch)


async def _append(bus: Bus, run: str, batch: list[Record]) -> None:
    drafts = [Draft(r.subject.rpartition(".")[2], r.subject, r.data, r) for r in batch]
    appended = await bus.append(run, drafts)
    expected = batch[0].sequence if appended.already else batch[-1].sequence
    if appended.sequence != expected:
        raise BusError(f"run '{run}' was written to by another while it was imported: event {expected} is not ours")


async def _close(bus: Bus, run: str, root: str) -> None:
    """Compare what was stored, and only then give the run its status; one that has ended is sealed."""
    stored = await tally(bus, run)
    if stored.root != root:
        raise BusError(f"run '{run}' was not stored as its file has it: the file changed while it was read")
    await settle(bus, run, stored)


async def settle(bus: Bus, run: str, stored: Tally) -> None:
    """Status of a whole run that came from elsewhere. One that has not ended is served by nobody until --resume."""
    await bus.set_status(run, stored.status or IMPORTED)
    if stored.status is not None:
        await bus.seal(run)

"""An archive back into a server: checked whole, compared with what is there, and then restored run by run.

Numbers and times are those of the log that was archived. A run that is there already is compared and left alone; one
that was removed comes back. A restore that was interrupted is marked as such and goes on when asked for again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from resia.events import Blob
from resia.events.errors import BusError, UsageError

from .archive import recorded
from .archive_file import Kept, Manifest, Opened, damaged, member, opened_archive
from .blobs import DirectoryBlobs
from .bus import Bus
from .importing import settle
from .protocol import IMPORTING, REMOVED, RunEntry
from .records import Progress, tally
from .streamcopy import check_config, delete, put_back, streams


class Restored(NamedTuple):
    """What came of a restore: the runs that were put back, and how many blobs the archive holds."""

    manifest: Manifest
    runs: tuple[str, ...]
    blobs: int


async def restore_file(bus: Bus, blobs: DirectoryBlobs, path: Path, progress: Progress) -> Restored:
    """`restore_opened` of the archive at `path`, which is checked first."""
    with opened_archive(path) as found:
        return await restore_opened(bus, blobs, found, progress)


async def restore_opened(bus: Bus, blobs: DirectoryBlobs, found: Opened, progress: Progress) -> Restored:
    """Restore an archive that was checked; needs the admin credential. UsageError leaves the log as it was."""
    runs = found.manifest.runs
    for kept in runs:
        check_config(kept.run, kept.stream)
    missing = [kept for kept in runs if not await _present(bus, found, kept)]
    count = _put_blobs(found, blobs, progress)
    for kept in missing:
        await _restore(bus, found, kept, progress)
    last = runs[-1]
    entry = await bus.find_run(last.run)
    if entry is not None and _without_archive(entry):
        await bus.change_entry(last.run, archive=recorded(found.path, member(found.path), found.manifest))
    return Restored(found.manifest, tuple(kept.run for kept in missing), count)


def _without_archive(entry: RunEntry) -> bool:
    """Whether no archive of the run is known, or none is where it was."""
    return entry.archive is None or not Path(entry.archive.path).is_file()


async def _present(bus: Bus, found: Opened, kept: Kept) -> bool:
    """Whether the run is here already, and whole; UsageError when it is here and another."""
    entry = await bus.find_run(kept.run)
    if entry is None:
        return False
    if entry.status == REMOVED:
        facts = (entry.archive.events, entry.archive.merkle_root) if entry.archive else None
        if facts != (kept.events, kept.merkle_root):
            raise UsageError(
                f"run '{kept.run}' was removed from here and {found.path} is not the archive of it: restore that one"
                " first, or restore into another store"
            )
    if kept.run not in await streams(bus):
        return False  # it was removed, or a restore was interrupted before the server had made the stream
    here = await bus.last_sequence(kept.run)
    exact = kept.run == found.manifest.run
    if here < kept.events or (exact and here != kept.events):
        raise UsageError(
            f"run '{kept.run}' is here already with {here} events and the archive holds {kept.events}: restore into"
            " another store"
        )
    if (await tally(bus, kept.run, kept.events)).root != kept.merkle_root:
        raise UsageError(
            f"run '{kept.run}' is here already and is not the one in {found.path}: restore into another store"
        )
    if entry.status in (IMPORTING, REMOVED):  # or its removal was interrupted
        await settle(bus, kept.run, await tally(bus, kept.run))
    return True


def _put_blobs(found: Opened, blobs: DirectoryBlobs, progress: Progress) -> int:
    """Blobs come first: a log must never name what is not there."""
    wanted = [name for name in found.manifest.members if name.startswith("blobs/")]
    for number, name in enumerate(wanted, 1):
        with found.member(name) as source:
            blob: Blob = blobs.put(source.read())
        if f"blobs/{blob.digest}" != name:
            raise damaged(found.path, f"its member {name} changed while it was read")
        progress("blobs", number, len(wanted))
    return len(wanted)


async def _restore(bus: Bus, found: Opened, kept: Kept, progress: Progress) -> None:
    """One run: marked as unfinished, restored, read back and compared, and only then given its status."""
    before = await bus.find_run(kept.run)
    await bus.change_entry(kept.run, status=IMPORTING)
    try:
        with tempfile.NamedTemporaryFile() as copy:
            with found.member(f"streams/{kept.run}") as source:
                shutil.copyfileobj(source, copy)
            copy.flush()
            await put_back(bus, kept.run, Path(copy.name), kept.stream, progress)
        stored = await tally(bus, kept.run)
        if (stored.root, stored.times) != (kept.merkle_root, kept.times):
            await delete(bus, kept.run)
            raise BusError(f"run '{kept.run}' in {found.path} is not what its manifest says: nothing of it was kept")
    except BaseException:
        await _undo(bus, kept.run, before)
        raise
    await settle(bus, kept.run, stored)


async def _undo(bus: Bus, run: str, before: RunEntry | None) -> None:
    """Give the name back, unless the stream is there after all: then the same command will find it and go on."""
    if run in await streams(bus):
        return
    if before is None:
        await bus.forget_run(run)
    else:
        await bus.set_entry(before)

"""Removing a run's log: only while exactly that log stands in an archive, and the registry says so for ever.

The entry and the name stay, with where the archive is; `restore` brings the run back.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from resia.events.errors import UsageError

from .archive_file import member, opened_archive
from .bus import Bus
from .protocol import REMOVED, Archived, RunEntry
from .records import lineage, tally
from .store import require_run
from .streamcopy import delete, streams


async def remove_run(bus: Bus, run: str) -> RunEntry:
    """Take the stream of an archived, finished run away and record that. Needs the admin credential."""
    entry = await bus.find_run(run)
    if entry is not None and entry.status == REMOVED and run in await streams(bus):
        await delete(bus, run)  # an earlier removal was interrupted after it was recorded
        return entry
    await require_run(bus, run)
    assert entry is not None, "a run that is required is there"
    log = await tally(bus, run)
    if log.status is None:
        raise UsageError(f"run '{run}' has not ended: finish it with resia run --resume {run} before it is removed")
    archive = entry.archive
    if archive is None or (archive.events, archive.merkle_root) != (log.events, log.root):
        raise UsageError(f"run '{run}' has no archive of this log: resia archive {run} --out FILE first")
    check_archive(run, archive)
    if below := await children(bus, run):
        raise UsageError(f"run '{run}' is the history of {', '.join(below)}: archive and remove those first")
    await bus.change_entry(run, status=REMOVED)
    await delete(bus, run)
    return msgspec.structs.replace(entry, status=REMOVED)


def check_archive(run: str, archive: Archived, again: str | None = None) -> None:
    """The file must be the one that was recorded, bit for bit, and whole. `again` is what else can be done."""
    path = Path(archive.path)
    again = again or f"resia archive {run} --out FILE again"
    if not path.is_file():
        raise UsageError(f"the archive of run '{run}' is not at {path} any more: put it back, or {again}")
    if member(path).sha256 != archive.sha256:
        raise UsageError(f"the archive of run '{run}' at {path} was changed since it was made: {again}")
    with opened_archive(path) as found:
        kept = found.manifest.runs[-1]
        if (kept.run, kept.events, kept.merkle_root) != (run, archive.events, archive.merkle_root):
            raise UsageError(f"the archive at {path} holds another log than that of run '{run}': {again}")


async def children(bus: Bus, run: str) -> list[str]:
    """Runs whose log is here and begins in `run`."""
    found = []
    for other in await streams(bus):
        if other == run or await bus.find_run(other) is None or not await bus.last_sequence(other):
            continue
        links = [link for link in await lineage(bus, other) if link.run == other]
        if links[0].parent is not None and links[0].parent.run == run:
            found.append(other)
    return found

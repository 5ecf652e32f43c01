"""Making an archive: the server's copies of a run's stream and of its ancestors', and every blob that they name.

An archive is called done once its streams were restored on a server of its own, read, and found equal to the log.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import BlobError, BusError, UsageError
from resia.events.subjects import stream
from resia.replay.digest import digest

from .archive_file import FORMAT, VERSION, Kept, Manifest, Member, member, opened_archive, write_tar
from .blobs import DirectoryBlobs
from .bus import Bus
from .marks import Named
from .newfile import check_new, give_name
from .protocol import Archived, RunEntry
from .reading import read_log
from .records import Link, Progress, Tally, lineage, records, tally
from .resources import package_version
from .store import apart
from .streamcopy import Copied, put_back, take


class Made(NamedTuple):
    """An archive that was written."""

    entry: Archived
    manifest: Manifest
    size: int


async def archive_run(bus: Bus, blobs: DirectoryBlobs, run: str, out: Path, progress: Progress) -> Made:
    """Write and verify the archive of `run`, and record it in the registry. Needs the admin credential."""
    links = await lineage(bus, run)
    with _working(out) as folder:
        copies = {link.run: await take(bus, link.run, folder / link.run, progress) for link in links}
        kept, named = await _verified(bus, links, folder, copies, progress)
        members = {f"streams/{k.run}": member(folder / k.run) for k in kept}
        members |= {f"blobs/{each}": Member(size, each) for each, size in named.sizes(blobs).items()}
        manifest = Manifest(FORMAT, VERSION, run, package_version(), time.time(), tuple(kept), members)
        with (folder / ".tar").open("wb") as sink:
            write_tar(sink, manifest, folder, blobs)
        _same_members(folder / ".tar", manifest)
        written = member(folder / ".tar")
        give_name(folder / ".tar", out)
    entry = recorded(out, written, manifest)
    await bus.change_entry(run, archive=entry)
    return Made(entry, manifest, written.size)


def recorded(path: Path, file: Member, manifest: Manifest) -> Archived:
    """What the registry keeps of the archive at `path`."""
    last = manifest.runs[-1]
    return Archived(str(path.resolve()), file.sha256, manifest.time, last.events, last.merkle_root)


@contextmanager
def _working(out: Path) -> Iterator[Path]:
    """A folder beside the archive-to-be, so that the finished file only has to take its name."""
    check_new(out)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".archive-") as folder:
            yield Path(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as cause:
        raise UsageError(f"{out} cannot be written ({cause.strerror}): name another file with --out") from None


async def _verified(
    bus: Bus, links: tuple[Link, ...], folder: Path, copies: dict[str, Copied], progress: Progress
) -> tuple[list[Kept], Named]:
    """Restore the copies on a server of our own; each must hold exactly what the log holds."""
    named = Named()
    kept: list[Kept] = []
    async with apart(folder / ".scratch", durable=False) as own:
        for link in links:
            copied = copies[link.run]
            await put_back(own, link.run, folder / link.run, copied, progress)
            await own.set_entry(RunEntry(link.run, stream(link.run)))
            found = await _read_copy(own, link.run, named)
            log = await tally(bus, link.run, found.events)
            if (log.root, log.times) != (found.root, found.times) or found.events < link.events:
                raise BusError(f"the copy of run '{link.run}' does not hold what its log holds: try again")
            state = digest((await read_log(own, link.run)).at())
            kept.append(Kept(link.run, found.events, found.root, found.times, state, found.status, copied))
    return kept, named


async def _read_copy(own: Bus, run: str, named: Named) -> Tally:
    found = Tally(run)
    async for record in records(own, run):
        found.take(record)
        named.take(record.data, record.logged(run))
    return found


def _same_members(path: Path, manifest: Manifest) -> None:
    """What was just written, read again."""
    with opened_archive(path) as found:
        if found.manifest != manifest:
            raise BlobError(f"the archive at {path} was not written as it should be: is the disk sound?")

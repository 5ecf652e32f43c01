"""Commands of logs as files: export, import, archives and what may be removed."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resia.events.errors import UsageError

from .cli_options import DONE, STORE, JsonOption, NatsOption, StoreOption, emit, run_async, say
from .newfile import new_file

if TYPE_CHECKING:
    from .export import Footer
    from .marks import Named
    from .store import Store

PROGRESS_S = 2.0


class Format(StrEnum):
    """Forms that a run is exported in."""

    jsonl = "jsonl"
    parquet = "parquet"


RunArgument = Annotated[str, typer.Argument(help="The run.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(export)
    app.command("import")(import_)
    app.command()(archive)
    app.command()(restore)
    app.command()(remove)
    app.command()(gc)


class _Progress:
    """Says on standard error how far a long piece of work is, every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= PROGRESS_S:
            self._said = now
            say(f"{what}: {done:,} of {total:,}")


def export(
    run: RunArgument,
    to: Annotated[Format, typer.Option("--to", help="JSON lines, or a Parquet table for analysis.")] = Format.jsonl,
    out: Annotated[
        Path | None, typer.Option("--out", help="A new file; JSON lines go to standard output without.")
    ] = None,
    with_blobs: Annotated[bool, typer.Option("--with-blobs", help="Put the blobs into a folder FILE.blobs.")] = False,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Write every event of a run, and of the runs that it was forked from, with the exact bytes of each."""
    if out is None:
        if to is Format.parquet or json or with_blobs:
            raise UsageError("without a file there are only JSON lines on standard output: add --out FILE")
        run_async(_export(run, to, None, None, store, nats))
        return DONE
    with new_file(out) as partial:
        footer = run_async(_export(run, to, partial, out if with_blobs else None, store, nats))
    if json:
        emit({"run": run, "out": str(out), "events": footer.events, "merkle_root": footer.merkle_root})
    else:
        say(f"{footer.events} events of {' and '.join(s.run for s in footer.runs)} are in {out}")
    return DONE


async def _export(
    run: str, to: Format, path: Path | None, beside: Path | None, store: Path, nats: str | None
) -> Footer:
    from .export import write_jsonl
    from .export_parquet import write_parquet
    from .marks import Named
    from .store import Store, opened, require_whole

    there, named = Store(store, nats), Named() if beside else None
    async with opened(there) as bus:
        await require_whole(there, bus, run)
        if path is None:
            return await write_jsonl(bus, run, sys.stdout.buffer, _Progress())
        if to is Format.parquet:
            footer = await write_parquet(bus, run, path, _Progress(), named)
        else:
            with path.open("wb") as sink:
                footer = await write_jsonl(bus, run, sink, _Progress(), named)
    if beside is not None and named is not None:
        _put_beside(there, beside, named)
    return footer


def _put_beside(store: Store, out: Path, named: Named) -> None:
    from .blobs import DirectoryBlobs
    from .importing import blobs_beside

    blobs = store.blobs()
    blobs.copy_to(DirectoryBlobs(blobs_beside(out)), named.sizes(blobs))


def import_(
    file: Annotated[Path, typer.Argument(help="What resia export wrote, of either form.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Put an exported run into this log: the same numbers and bytes, the server's times are new."""

    async def work() -> int:
        from .importing import blobs_beside, import_surveyed, survey
        from .store import Store, opened, remember_ends

        checked = survey(file)  # before a store is made for it
        alone = not blobs_beside(file).is_dir()
        there = Store(store, nats)
        there.make()
        async with opened(there, administrate=True) as bus:
            found = await import_surveyed(bus, there.blobs(), checked, _Progress())
            await remember_ends(there, bus, found.written)
        if json:
            emit({"run": found.run, "events": found.events, "status": found.status, "written": found.written})
        elif found.written:
            said = " and ".join(f"{count} events of '{run}'" for run, count in found.written.items())
            say(f"{said} imported; times are this server's; status: {found.status}")
            if alone:
                say(f"blobs did not come along ({blobs_beside(file)} is not there): replay --verify will miss them")
        else:
            say(f"run '{found.run}' is here already with the same {found.events} events: nothing was written")
        return DONE

    return int(run_async(work()))


def archive(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", help="A new file; default: RUN.tar.")] = None,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Write a run, its ancestors and every blob that they name to one file, with numbers and times, and verify it."""

    async def work() -> int:
        from .archive import archive_run
        from .store import Store, opened, require_whole

        there = Store(store, nats)
        async with opened(there, administrate=True) as bus:
            await require_whole(there, bus, run)
            made = await archive_run(bus, there.blobs(), run, out or Path(f"{run}.tar"), _Progress())
        blobs = len(made.manifest.members) - len(made.manifest.runs)
        if json:
            emit(
                {"run": run, "out": made.entry.path, "sha256": made.entry.sha256, "events": made.entry.events}
                | {"merkle_root": made.entry.merkle_root, "blobs": blobs, "bytes": made.size}
            )
        else:
            say(f"{made.entry.events} events and {blobs} blobs are in {made.entry.path}, {made.size:,} bytes, verified")
        return DONE

    return int(run_async(work()))


def restore(
    file: Annotated[Path, typer.Argument(help="What resia archive wrote.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Put an archived run back, with its numbers, times and blobs."""

    async def work() -> int:
        from .archive_file import opened_archive
        from .restoring import restore_opened
        from .store import Store, opened, remember_ends

        with opened_archive(file) as found:  # before a store is made for it
            there = Store(store, nats)
            there.make()
            async with opened(there, administrate=True) as bus:
                done = await restore_opened(bus, there.blobs(), found, _Progress())
                await remember_ends(there, bus, done.runs)
        run = done.manifest.run
        if json:
            emit({"run": run, "restored": list(done.runs), "blobs": done.blobs})
        elif done.runs:
            say(f"restored {' and '.join(done.runs)} with {done.blobs} blobs")
        else:
            say(f"run '{run}' is here already and equal; its {done.blobs} blobs are there")
        return DONE

    return int(run_async(work()))


def remove(run: RunArgument, store: StoreOption = STORE, nats: NatsOption = None, json: JsonOption = False) -> int:
    """Remove the log of a finished run that resia archive has kept; its name stays taken."""

    async def work() -> int:
        from .retention import remove_run
        from .store import Store, opened

        async with opened(Store(store, nats), administrate=True) as bus:
            entry = await remove_run(bus, run)
        path = entry.archive.path if entry.archive else ""
        if json:
            emit({"run": run, "status": entry.status, "archive": path})
        else:
            say(f"run '{run}' is removed; it is archived at {path}")
        return DONE

    return int(run_async(work()))


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted.")] = False,
    grace: Annotated[float, typer.Option(min=0.0, help="Hours that a blob which nothing names is kept.")] = 24.0,
    store: StoreOption = STORE,
    nats: Annotated[
        list[str] | None, typer.Option("--nats", help="An external server whose logs use this folder; may be repeated.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Delete blobs that no event of any log names; refuses where it cannot be sure."""

    async def work() -> int:
        from .collecting import collect
        from .store import Store

        found = await collect(Store(store), tuple(nats or ()), grace, dry_run, _Progress())
        for item in found.gone:
            if json:
                emit({"blob": item.digest or item.path.name, "bytes": item.size, "deleted": not dry_run})
            else:
                sys.stdout.write(f"{item.digest or item.path.name}  {item.size:,} bytes\n")
        done = "would be deleted" if dry_run else "deleted"
        kept = f"; {found.young} more are younger than {grace:g} h" if found.young else ""
        say(f"{len(found.gone)} blobs that nothing names {done}, {found.size:,} bytes{kept}")
        return DONE

    return int(run_async(work()))

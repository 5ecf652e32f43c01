"""Archives: everything of a run in one file, bit for bit, checked whole before anything is restored."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
import stored_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resia.events.errors import BlobError, BusError, UsageError
from resia.events.ids import sha256
from resia.replay.digest import digest
from resia.runtime.archive import archive_run
from resia.runtime.archive_file import Manifest, opened_archive
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.protocol import IMPORTED, IMPORTING, RunEntry
from resia.runtime.reading import read_log
from resia.runtime.records import records, tally
from resia.runtime.restoring import restore_file
from resia.runtime.streamcopy import streams


def quiet(what: str, done: int, total: int) -> None:
    assert done >= 0, what


@pytest.fixture
def others(tmp_path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "other-blobs")


@pytest.fixture
async def child(bus, run, blobs) -> str:
    """A fork of `run`; both have ended, and the parent holds messages that are no events too."""
    parent = stored_runs.played(run)
    await stored_runs.with_junk(bus, run, parent, blobs)
    name = f"{run}-child"
    history = stored_runs.played(name, parent=stored_runs.forked_at(parent, run, 20))
    await bus.create_run(name)
    await stored_runs.keep(bus, name, history, blobs)
    await stored_runs.end(bus, name, history)
    return name


async def test_a_restored_run_has_the_same_bytes_numbers_times_and_blobs(
    bus, run, child, blobs, empty, others, tmp_path
):
    made = await archive_run(bus, blobs, child, tmp_path / "x.tar", quiet)
    assert (await bus.find_run(child)).archive == made.entry
    assert [kept.run for kept in made.manifest.runs] == [run, child]
    found = await restore_file(empty, others, tmp_path / "x.tar", quiet)
    assert found.runs == (run, child)
    for name in (run, child):
        assert [r async for r in records(empty, name)] == [r async for r in records(bus, name)]
        assert digest((await read_log(empty, name)).at()) == digest((await read_log(bus, name)).at())
        assert (await empty.find_run(name)).status == (await bus.find_run(name)).status
        with pytest.raises(BusError, match="is sealed"):
            await empty.append(name, [stored_runs.draft(name)])
    named = stored_runs.played(run).blobs
    assert {item.digest for item in others.stored()} == set(named)
    assert made.manifest.runs[0].digest == digest((await read_log(bus, run)).at())
    assert (await restore_file(empty, others, tmp_path / "x.tar", quiet)).runs == ()


async def test_an_archive_is_written_once_and_leaves_nothing_else_behind(bus, run, child, blobs, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    await archive_run(bus, blobs, run, folder / "x.tar", quiet)
    with pytest.raises(UsageError, match="exists already: name another file with --out"):
        await archive_run(bus, blobs, run, folder / "x.tar", quiet)
    with pytest.raises(UsageError, match="cannot be written"):
        await archive_run(bus, blobs, run, tmp_path / "none" / "x.tar", quiet)
    assert os.listdir(folder) == ["x.tar"]


async def test_a_run_whose_blob_is_missing_or_damaged_is_not_archived(bus, run, child, blobs, tmp_path):
    victim = next(iter(stored_runs.played(run).blobs))
    blobs.place(victim).write_bytes(b"changed")
    with pytest.raises(BlobError, match=f"blob {victim[:12]} in .* does not match its digest"):
        await archive_run(bus, blobs, run, tmp_path / "x.tar", quiet)
    blobs.place(victim).unlink()
    with pytest.raises(BlobError, match=f"blob {victim[:12]} .* is missing"):
        await archive_run(bus, blobs, run, tmp_path / "x.tar", quiet)
    assert not (tmp_path / "x.tar").exists()
    assert (await bus.find_run(run)).archive is None


async def test_a_live_run_is_archived_as_far_as_it_is(bus, run, blobs, empty, others, tmp_path):
    history = stored_runs.played(run)
    await stored_runs.keep(bus, run, history._replace(records=history.records[:30], facts=history.facts[:30]), blobs)
    made = await archive_run(bus, blobs, run, tmp_path / "x.tar", quiet)
    assert made.entry.events == 30
    await restore_file(empty, others, tmp_path / "x.tar", quiet)
    assert (await empty.find_run(run)).status == IMPORTED
    assert (await empty.append(run, [stored_runs.draft(run)])).sequence == 31


async def test_a_run_that_differs_is_left_alone(bus, run, child, blobs, empty, others, tmp_path):
    await archive_run(bus, blobs, child, tmp_path / "x.tar", quiet)
    await empty.create_run(run)
    await stored_runs.keep(empty, run, stored_runs.played(run, seed=5))
    before = await tally(empty, run)
    with pytest.raises(UsageError, match=f"run '{run}' is here already with {before.events} events"):
        await restore_file(empty, others, tmp_path / "x.tar", quiet)
    for number, data in enumerate(stored_runs.JUNK * 2):
        await stored_runs.say(empty, f"resia.{run}.junk.any.{number}", data)
    with pytest.raises(UsageError, match=f"run '{run}' is here already and is not the one in"):
        await restore_file(empty, others, tmp_path / "x.tar", quiet)
    assert await streams(empty) == [run]
    assert await empty.find_run(child) is None
    assert list(others.stored()) == []


async def test_a_restore_that_was_interrupted_goes_on(bus, run, child, blobs, empty, others, tmp_path):
    await archive_run(bus, blobs, child, tmp_path / "x.tar", quiet)
    await empty.set_entry(RunEntry(run, f"RUN-{run}", IMPORTING))  # killed before the server had the stream
    assert (await restore_file(empty, others, tmp_path / "x.tar", quiet)).runs == (run, child)
    await empty.set_status(child, IMPORTING)  # killed after it
    assert (await restore_file(empty, others, tmp_path / "x.tar", quiet)).runs == ()
    assert (await empty.find_run(child)).status == (await bus.find_run(child)).status


def rewrite(path: Path, to: Path, change) -> None:
    """The archive with its members passed through `change`: (name, bytes) to the same, or None. Sealed again."""
    sealed = ""
    with tarfile.open(path) as source, tarfile.open(to, "w") as sink:
        for info in source:
            data = sealed.encode() if info.name == "manifest.sha256" else source.extractfile(info).read()
            found = change(info.name, data)
            if info.name == "manifest.json" and found is not None:
                sealed = sha256(found[1])
            if found is not None:
                made = tarfile.TarInfo(found[0])
                made.size = len(found[1])
                sink.addfile(made, io.BytesIO(found[1]))


@pytest.fixture
async def archive(bus, run, child, blobs, tmp_path) -> Path:
    await archive_run(bus, blobs, child, tmp_path / "sound.tar", quiet)
    return tmp_path / "sound.tar"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda name, data: None if name.startswith("blobs/0") else (name, data), "it ends before its member blobs/0"),
        (lambda name, data: (name, data + b"x"), "manifest.json cannot be read"),
        (lambda name, data: (name, data[:-1] + b"~") if name.startswith("streams") else (name, data), "does not match"),
        (lambda name, data: (name.replace("blobs/", "../"), data), r"member '\.\./.*' is not in the manifest"),
        (lambda name, data: None if name == "manifest.json" else (name, data), "does not begin with manifest.json"),
        (lambda name, data: ("x", data) if name == "manifest.sha256" else (name, data), "member 'x' is not in the"),
        (lambda name, data: (name, data.replace(b"resia-archive", b"other-archive")), "its format is 'other-archive'"),
    ],
)
async def test_a_changed_archive_restores_nothing(archive, empty, others, tmp_path, change, why):
    rewrite(archive, tmp_path / "bad.tar", change)
    with pytest.raises(UsageError, match=why) as refused:
        await restore_file(empty, others, tmp_path / "bad.tar", quiet)
    assert "\n" not in str(refused.value)
    assert await empty.runs() == []
    assert await streams(empty) == []
    assert list(others.stored()) == []


def forged(archive: Path, to: Path, change) -> None:
    """An archive whose manifest was changed to say something else of sound members."""

    def at(name: str, data: bytes) -> tuple[str, bytes]:
        if name != "manifest.json":
            return name, data
        return name, msgspec.json.encode(change(msgspec.json.decode(data, type=Manifest)))

    rewrite(archive, to, at)


async def test_a_stream_that_is_not_what_the_manifest_says_is_taken_away_again(archive, run, empty, others, tmp_path):
    def other_root(manifest: Manifest) -> Manifest:
        first = msgspec.structs.replace(manifest.runs[0], merkle_root="0" * 64)
        return msgspec.structs.replace(manifest, runs=(first, *manifest.runs[1:]))

    forged(archive, tmp_path / "bad.tar", other_root)
    with pytest.raises(BusError, match=f"run '{run}' .* is not what its manifest says: nothing of it was kept"):
        await restore_file(empty, others, tmp_path / "bad.tar", quiet)
    assert await empty.runs() == []
    assert await streams(empty) == []


@pytest.mark.parametrize(
    "config",
    [{"name": "RUN-other"}, {"subjects": ["resia.>"]}, {"sources": [{"name": "RUN-x"}]}, {"republish": {"src": ">"}}],
)
async def test_a_stream_of_other_subjects_or_sources_is_refused(archive, empty, others, tmp_path, config):
    def other_config(manifest: Manifest) -> Manifest:
        copied = manifest.runs[0].stream
        copied = msgspec.structs.replace(copied, config={**copied.config, **config})
        first = msgspec.structs.replace(manifest.runs[0], stream=copied)
        return msgspec.structs.replace(manifest, runs=(first, *manifest.runs[1:]))

    forged(archive, tmp_path / "bad.tar", other_config)
    with pytest.raises(UsageError, match="it has other subjects or sources"):
        await restore_file(empty, others, tmp_path / "bad.tar", quiet)
    assert await empty.runs() == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
async def test_a_flipped_bit_or_a_lost_end_is_noticed(archive, tmp_path, at, bit, cut):
    data = bytearray(archive.read_bytes())
    with opened_archive(archive) as found:
        whole = found.manifest
    place = int(at * (len(data) - 1))
    lost = bytes(data[place:]).strip(b"\0")
    data = data[:place] if cut else data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    bad = tmp_path / "bad.tar"
    bad.write_bytes(data)
    try:
        with opened_archive(bad) as found:
            noticed, same = False, found.manifest == whole
    except UsageError as refused:
        noticed, same = True, "\n" not in str(refused)
    assert same, "refused in a sentence, or only padding between members differs"
    assert noticed or not cut or not lost, "nothing but the filling of the last block may go"


def test_what_is_no_archive_is_refused_in_a_sentence(tmp_path):
    for data in (b"", b"x", bytes(10_240), b"PAR1" * 400):
        (tmp_path / "x.tar").write_bytes(data)
        with (
            pytest.raises(UsageError, match=r"cannot be restored: .*; take another copy of the archive"),
            opened_archive(tmp_path / "x.tar"),
        ):
            pass
    with pytest.raises(UsageError, match="cannot be read: No such file"), opened_archive(tmp_path / "none"):
        pass


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from resia.runtime.archive import archive_run
from resia.runtime.store import Store, opened

def die(what, done, total):
    os.kill(os.getpid(), signal.SIGKILL)

async def work(folder, out):
    store = Store(folder)
    async with opened(store, administrate=True) as bus:
        await archive_run(bus, store.blobs(), "kept", out, die)

asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def test_a_killed_archive_is_no_archive(tmp_path):
    from resia.runtime.store import Store, opened

    store = Store(tmp_path / "store")
    store.make()
    async with opened(store) as bus:
        await bus.create_run("kept")
        await stored_runs.keep(bus, "kept", stored_runs.played("kept"), store.blobs())
    died = subprocess.run([sys.executable, "-c", KILLED, str(store.folder), str(tmp_path / "x.tar")], check=False)  # noqa: ASYNC221
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.tar").exists()
    with (store.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until its server is gone too
    async with opened(store) as bus:
        assert (await bus.find_run("kept")).archive is None
        await archive_run(bus, store.blobs(), "kept", tmp_path / "x.tar", quiet)

"""Exports into logs: the same run, checked before a stream is made, and never over another one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import stored_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import histories
from resia.events.errors import BusError, UsageError
from resia.replay.digest import digest
from resia.replay.verify import check
from resia.runtime.cli import main
from resia.runtime.export import write_jsonl
from resia.runtime.export_parquet import write_parquet
from resia.runtime.importing import Imported, blobs_beside, import_file
from resia.runtime.protocol import IMPORTED, IMPORTING
from resia.runtime.reading import read_log
from resia.runtime.records import records
from resia.runtime.store import Store, opened, require_run


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


@pytest.fixture
async def file(bus, run, tmp_path) -> Path:
    """An export of an ended run with custom facts and messages that are no events."""
    await stored_runs.with_junk(bus, run, stored_runs.played(run))
    return await jsonl(bus, run, tmp_path / "run.jsonl")


async def jsonl(bus, run, path: Path) -> Path:
    with path.open("wb") as sink:
        await write_jsonl(bus, run, sink, quiet)
    return path


async def messages(bus, run) -> list[tuple[int, str, bytes]]:
    return [(r.sequence, r.subject, r.data) async for r in records(bus, run)]


async def test_an_imported_run_is_the_run(bus, run, file, empty, blobs, tmp_path):
    found = await import_file(empty, blobs, file, quiet)
    assert found == Imported(run, {run: found.events}, await bus.last_sequence(run), "completed")
    assert await messages(empty, run) == await messages(bus, run)
    here, there = await read_log(bus, run), await read_log(empty, run)
    assert digest(here.at()) == digest(there.at())
    assert check(there.facts) == check(here.facts)
    with pytest.raises(BusError, match="is sealed"):
        await empty.append(run, [stored_runs.draft(run)])
    again = io.BytesIO()
    footer = await write_jsonl(empty, run, again, quiet)
    assert footer.runs[0].events == found.events
    assert await import_file(empty, blobs, file, quiet) == found._replace(written={})


async def test_a_table_is_imported_as_well(bus, run, file, empty, blobs, tmp_path):
    await write_parquet(bus, run, tmp_path / "run.parquet", quiet)
    await import_file(empty, blobs, tmp_path / "run.parquet", quiet)
    assert await messages(empty, run) == await messages(bus, run)
    assert (await import_file(empty, blobs, file, quiet)).written == {}


_numbers = iter(range(10**6))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    world=st.builds(
        lambda **chosen: histories.World(**chosen),  # no more than is chosen here
        base=st.floats(0, 1),
        noise=st.floats(0, 0.5),
        overfit=st.floats(0, 0.3),
        controls_fail=st.booleans(),
        draft_fails=st.booleans(),
    ),
    mode=st.sampled_from(["H", "W", "W+H"]),
    table=st.booleans(),
)
async def test_whatever_was_played_comes_back_with_its_digest(bus, empty, blobs, tmp_path, seed, world, mode, table):
    name = f"played-{next(_numbers)}"
    history = stored_runs.played(name, seed=seed, world=world, mode=mode)
    await bus.create_run(name)
    await stored_runs.keep(bus, name, history)
    path = tmp_path / name
    if table:
        await write_parquet(bus, name, path, quiet)
    else:
        await jsonl(bus, name, path)
    assert (await import_file(empty, blobs, path, quiet)).status == history.state.status
    assert digest((await read_log(empty, name)).at()) == digest(history.state)
    assert [fact.leaf async for fact in empty.read(name)] == [fact.leaf for fact in history.facts]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
async def test_a_file_that_is_cut_makes_no_stream(run, file, empty, blobs, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UsageError, match="cannot be imported"):
        await import_file(empty, blobs, file, quiet)
    assert await empty.runs() == []
    with pytest.raises(BusError, match="there is no such run"):
        await empty.last_sequence(run)


async def test_an_existing_other_run_is_left_alone(bus, run, file, empty, blobs):
    await empty.create_run(run)
    other = stored_runs.played(run, seed=7)
    await stored_runs.keep(empty, run, other)
    before = await messages(empty, run)
    with pytest.raises(UsageError, match=f"run '{run}' is here already and its event 1 is not the one in"):
        await import_file(empty, blobs, file, quiet)
    assert await messages(empty, run) == before
    assert (await empty.find_run(run)).status == "active"


async def test_a_shorter_or_longer_run_of_the_name_is_refused(bus, run, empty, blobs, tmp_path):
    history = stored_runs.played(run)
    await stored_runs.keep(bus, run, history)
    whole = await jsonl(bus, run, tmp_path / "whole")
    await empty.create_run(run)
    await stored_runs.keep(empty, run, history._replace(records=history.records[:9], facts=history.facts[:9]))
    with pytest.raises(UsageError, match=f"run '{run}' is here already with 9 events and .*whole has"):
        await import_file(empty, blobs, whole, quiet)
    short = await jsonl(empty, run, tmp_path / "short")
    with pytest.raises(UsageError, match=r"and .*short has 9: import it into another store"):
        await import_file(bus, blobs, short, quiet)


async def test_an_interrupted_import_says_so_and_goes_on(bus, run, file, empty, blobs):
    whole = await messages(bus, run)
    await empty.create_run(run, IMPORTING)
    history = stored_runs.played(run)
    await stored_runs.keep(empty, run, history._replace(records=history.records[:5], facts=history.facts[:5]))
    with pytest.raises(UsageError, match="is not whole: its import or restore was interrupted, so ask for it again"):
        await require_run(empty, run)
    found = await import_file(empty, blobs, file, quiet)
    assert found.written == {run: len(whole) - 5}
    assert await messages(empty, run) == whole
    await require_run(empty, run)


async def test_an_unfinished_run_is_served_by_nobody(bus, run, empty, blobs, tmp_path):
    history = stored_runs.played(run)
    await stored_runs.keep(bus, run, history._replace(records=history.records[:9], facts=history.facts[:9]))
    found = await import_file(empty, blobs, await jsonl(bus, run, tmp_path / "x"), quiet)
    assert found.status == IMPORTED
    assert [entry.status for entry in await empty.runs()] == [IMPORTED]
    assert (await empty.append(run, [stored_runs.draft(run)])).sequence == 10


async def forked(bus, run) -> str:
    parent = stored_runs.played(run)
    await stored_runs.keep(bus, run, parent)
    child = f"{run}-child"
    await bus.create_run(child)
    await stored_runs.keep(bus, child, stored_runs.played(child, parent=stored_runs.forked_at(parent, run, 20)))
    return child


async def test_a_fork_brings_its_parent_or_finds_it_there(bus, run, empty, blobs, tmp_path):
    child = await forked(bus, run)
    path, parent = await jsonl(bus, child, tmp_path / "child"), await jsonl(bus, run, tmp_path / "parent")
    found = await import_file(empty, blobs, path, quiet)
    assert list(found.written) == [run, child]
    for name in (run, child):
        assert await messages(empty, name) == await messages(bus, name)
        assert digest((await read_log(empty, name)).at()) == digest((await read_log(bus, name)).at())
    assert (await import_file(empty, blobs, parent, quiet)).written == {}


async def test_a_fork_takes_a_parent_that_has_gone_on_and_no_other(bus, run, empty, blobs, tmp_path):
    child = await forked(bus, run)
    path = await jsonl(bus, child, tmp_path / "child")
    history = stored_runs.played(run)
    await empty.create_run(run)
    await stored_runs.keep(empty, run, history._replace(records=history.records[:19], facts=history.facts[:19]))
    with pytest.raises(UsageError, match=f"run '{run}' is here already with 19 events"):
        await import_file(empty, blobs, path, quiet)
    assert await empty.find_run(child) is None
    twentieth = history._replace(records=history.records[19:20], facts=history.facts[19:20])
    await stored_runs.keep(empty, run, twentieth)
    assert list((await import_file(empty, blobs, path, quiet)).written) == [child]


async def test_an_export_without_the_parent_that_it_names_is_refused(bus, run, empty, blobs, tmp_path):
    child = await forked(bus, run)
    path = await jsonl(bus, child, tmp_path / "child")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b'"parents":["' + run.encode() + b'"]', b'"parents":[]'), *lines[1:]]))
    with pytest.raises(UsageError, match=f"is of run '{run}' where its header lets expect '{child}'"):
        await import_file(empty, blobs, path, quiet)


def test_the_commands_take_a_run_with_its_blobs_to_another_store(tmp_path, capsys):
    run_sync(fill(tmp_path / "a"))
    store, other, out = str(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "x.parquet"
    assert main(["export", "kept", "--store", store, "--to", "parquet", "--out", str(out), "--with-blobs"]) == 0
    assert main(["import", str(out), "--store", other]) == 0
    capsys.readouterr()
    shown = []
    for folder in (store, other):
        assert main(["replay", "kept", "--store", folder, "--verify", "--json"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert main(["export", "kept", "--store", other]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('{"format":"resia-export"')
    assert main(["export", "kept", "--store", store, "--out", str(out)]) == 2
    assert "exists already: name another file with --out" in capsys.readouterr().err
    assert main(["export", "kept", "--store", store, "--to", "parquet"]) == 2
    assert main(["export", "keptt", "--store", store]) == 2
    assert "unknown run 'keptt': did you mean kept?" in capsys.readouterr().err
    out.write_bytes(out.read_bytes()[:-9])
    assert main(["import", str(out), "--store", str(tmp_path / "c")]) == 2
    assert not (tmp_path / "c").exists()


def test_a_damaged_blob_beside_an_export_is_named_and_no_stream_is_made(tmp_path, capsys):
    run_sync(fill(tmp_path / "a"))
    out = tmp_path / "x.jsonl"
    assert main(["export", "kept", "--store", str(tmp_path / "a"), "--out", str(out), "--with-blobs"]) == 0
    victim = next(blobs_beside(out).glob("??/*"))
    victim.write_bytes(b"changed")
    assert main(["import", str(out), "--store", str(tmp_path / "b")]) == 1
    assert f"blob {victim.name[:12]}" in capsys.readouterr().err
    assert main(["status", "--store", str(tmp_path / "b"), "--json"]) == 0
    assert capsys.readouterr().out == ""


async def fill(folder: Path) -> None:
    """A store with one ended run and its blobs."""
    store = Store(folder)
    store.make()
    async with opened(store) as bus:
        history = stored_runs.played("kept")
        await bus.create_run("kept")
        await stored_runs.keep(bus, "kept", history, store.blobs())
        await stored_runs.end(bus, "kept", history)


def run_sync(work) -> None:
    import asyncio

    asyncio.run(work)

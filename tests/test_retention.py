"""Removal only after an archive, and collection that never takes what a log names."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
import stored_runs

from resia.events.errors import UsageError
from resia.runtime.archive import archive_run
from resia.runtime.bus import connect
from resia.runtime.cli import main
from resia.runtime.collecting import collect
from resia.runtime.protocol import IMPORTING
from resia.runtime.records import records
from resia.runtime.restoring import restore_file
from resia.runtime.retention import check_archive, remove_run
from resia.runtime.server import EmbeddedServer
from resia.runtime.store import Store, address, opened, serving
from resia.runtime.streamcopy import streams


def quiet(what: str, done: int, total: int) -> None:
    assert done >= 0, what


@pytest.fixture
def store(tmp_path) -> Store:
    there = Store(tmp_path / "store")
    there.make()
    return there


async def kept(bus, store: Store, run: str, **chosen) -> None:
    """An ended run with its blobs."""
    history = stored_runs.played(run, **chosen)
    await bus.create_run(run)
    await stored_runs.keep(bus, run, history, store.blobs())
    await stored_runs.end(bus, run, history)


async def archived(bus, store: Store, run: str) -> Path:
    path = store.folder.parent / f"{run}.tar"
    await archive_run(bus, store.blobs(), run, path, quiet)
    return path


# -- removal ------------------------------------------------------------


async def test_a_removed_run_says_where_it_is_and_comes_back(store, capsys):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        before = [r async for r in records(bus, "a")]
        path = await archived(bus, store, "a")
        entry = await remove_run(bus, "a")
        assert (entry.status, entry.archive.path) == ("removed", str(path))
        assert await streams(bus) == []
        with pytest.raises(UsageError, match=f"run 'a' was removed and is archived at {path}: resia restore"):
            await remove_run(bus, "a")
        with pytest.raises(UsageError, match="exists already"):
            await bus.create_run("a")
        assert (await restore_file(bus, store.blobs(), path, quiet)).runs == ("a",)
        assert [r async for r in records(bus, "a")] == before
        assert (await bus.find_run("a")).status == "completed"


async def test_only_exactly_what_is_archived_is_removed(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        with pytest.raises(UsageError, match="run 'a' has no archive of this log: resia archive a --out FILE first"):
            await remove_run(bus, "a")
        path = await archived(bus, store, "a")
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"x")
        with pytest.raises(UsageError, match="was changed since it was made"):
            await remove_run(bus, "a")
        path.rename(path.with_suffix(".moved"))
        with pytest.raises(UsageError, match=f"is not at {path} any more: put it back"):
            await remove_run(bus, "a")
        path.write_bytes(whole)
        assert await streams(bus) == ["a"]
        await remove_run(bus, "a")


async def test_an_archive_that_was_moved_is_known_again_once_it_is_restored(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        path = await archived(bus, store, "a")
        await remove_run(bus, "a")
        moved = path.rename(path.with_name("moved.tar"))
        with pytest.raises(UsageError, match=r"is not at .* any more: put it back, or resia restore"):
            check_archive("a", (await bus.find_run("a")).archive, "resia restore it")
        await restore_file(bus, store.blobs(), moved, quiet)
        await remove_run(bus, "a")
        assert (await bus.find_run("a")).archive.path == str(moved)


async def test_a_removal_that_was_interrupted_is_undone_by_the_restore(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        path = await archived(bus, store, "a")
        await bus.change_entry("a", status="removed")  # as far as it came
        assert (await restore_file(bus, store.blobs(), path, quiet)).runs == ()
        assert (await bus.find_run("a")).status == "completed"


async def test_two_that_change_one_entry_both_do(store):
    async with opened(store) as bus:
        await bus.create_run("a")
        await asyncio.gather(*(bus.change_entry("a", **field) for field in ({"status": "completed"}, {"stream": "S"})))
        entry = await bus.find_run("a")
        assert (entry.status, entry.stream) == ("completed", "S")
        await bus.forget_run("a")
        await bus.set_status("a", "failed")
        assert (await bus.find_run("a")).status == "failed"


async def test_a_run_that_grew_since_its_archive_is_not_removed(store):
    async with opened(store) as bus:
        history = stored_runs.played("a")
        await bus.create_run("a")
        first = len(history.records) - 1
        cut = history._replace(records=history.records[:first], facts=history.facts[:first])
        await stored_runs.keep(bus, "a", cut, store.blobs())
        await archived(bus, store, "a")
        with pytest.raises(UsageError, match="has not ended: finish it with resia run --resume a"):
            await remove_run(bus, "a")
        rest = history._replace(records=history.records[first:], facts=history.facts[first:])
        await stored_runs.keep(bus, "a", rest)
        with pytest.raises(UsageError, match="has no archive of this log"):
            await remove_run(bus, "a")


async def test_a_run_with_living_forks_is_not_removed(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        parent = stored_runs.forked_at(stored_runs.played("a"), "a", 20)
        for name in ("b", "c"):
            await kept(bus, store, name, parent=parent)
        await archived(bus, store, "a")
        with pytest.raises(UsageError, match="run 'a' is the history of b, c: archive and remove those first"):
            await remove_run(bus, "a")
        for name in ("b", "c"):
            await archived(bus, store, name)
            await remove_run(bus, name)
        await remove_run(bus, "a")
        assert await streams(bus) == []


async def test_a_removal_that_was_interrupted_is_finished(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        await archived(bus, store, "a")
        await bus.set_status("a", "removed")  # killed before the stream went
        await remove_run(bus, "a")
        assert await streams(bus) == []


# -- collection ------------------------------------------------------------


def digests(store: Store) -> set[str]:
    return {item.digest for item in store.blobs().stored()}


async def test_only_what_nothing_names_is_collected(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        parent = stored_runs.forked_at(stored_runs.played("a"), "a", 20)
        await kept(bus, store, "b", parent=parent)
        custom = store.blobs().put(b"named by a custom fact")
        escaped = store.blobs().put(b"named in escapes")
        await bus.create_run("c")
        await stored_runs.keep(bus, "c", stored_runs.played("c"), store.blobs())
        await stored_runs.say(bus, *stored_runs.custom_message("c", 1, {"blob": custom.digest}))
        subject, data = stored_runs.custom_message("c", 2, {"blob": escaped.digest})
        plain = escaped.digest.encode()
        await stored_runs.say(bus, subject, data.replace(plain, rb"\u%04x" % plain[0] + plain[1:]))
    named = digests(store)
    orphan = store.blobs().put(b"nobody names me")
    (store.folder / "blobs" / orphan.digest[:2] / ".half").write_bytes(b"half")
    (store.folder / "blobs" / "README").write_text("not ours")
    dry = await collect(store, (), 0.0, True, quiet)
    assert [item.digest for item in dry.gone] == [None, orphan.digest]
    assert dry.size == len(b"half") + len(b"nobody names me")
    assert digests(store) == {*named, orphan.digest, None}
    assert (await collect(store, (), 0.0, False, quiet)).gone == dry.gone
    assert digests(store) == named
    assert (store.folder / "blobs" / "README").exists()


async def test_the_blobs_of_a_removed_run_go_while_its_archive_has_them(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        path = await archived(bus, store, "a")
        await remove_run(bus, "a")
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(UsageError, match="the archive of run 'a' is not at"):
        await collect(store, (), 0.0, False, quiet)
    path.write_bytes(whole)
    gone = await collect(store, (), 0.0, False, quiet)
    assert {item.digest for item in gone.gone} == set(stored_runs.played("a").blobs)
    async with opened(store) as bus:
        await restore_file(bus, store.blobs(), path, quiet)
    assert digests(store) == set(stored_runs.played("a").blobs)


async def test_young_blobs_stay_and_a_put_makes_young_again(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
    old, again = store.blobs().put(b"old"), store.blobs().put(b"again")
    for blob in (old, again):
        os.utime(store.blobs().place(blob.digest), (0, time.time() - 7200))
    store.blobs().put(b"again")
    found = await collect(store, (), 1.0, False, quiet)
    assert [item.digest for item in found.gone] == [old.digest]
    assert found.young == 1
    assert store.blobs().get(again) == b"again"


async def test_what_was_put_again_after_the_sweep_had_looked_stays(store):
    blob = store.blobs().put(b"again")
    before = time.time() - 3600
    os.utime(store.blobs().place(blob.digest), (0, before - 1))
    seen = list(store.blobs().stored())
    store.blobs().put(b"again")
    assert list(store.blobs().sweep(seen, before)) == []
    assert store.blobs().get(blob) == b"again"


async def refused(store: Store, why: str, servers: tuple[str, ...] = (), grace: float = 0.0) -> None:
    before = digests(store)
    with pytest.raises(UsageError, match=why) as cause:
        await collect(store, servers, grace, False, quiet)
    assert "\n" not in str(cause.value)
    assert digests(store) == before


async def test_nothing_is_collected_where_something_is_not_sure(store):
    store.blobs().put(b"nobody names me")
    await refused(store, "there is no log in")
    async with opened(store) as bus:
        await kept(bus, store, "a")
        await refused(store, "is in use by another resia")
        await bus.create_run("live")
    await refused(store, "because of run 'live': it has not ended: finish it with resia run --resume live")
    async with opened(store) as bus:
        await stored_runs.keep(bus, "live", stored_runs.played("live"))
        await stored_runs.say(bus, "resia.live.x.y.z", b"junk")
    await refused(store, r"run 'live': event \d+ cannot be read .*, so nobody knows which blobs it names")


async def test_an_unfinished_import_or_a_lost_log_stops_a_collection(store):
    async with opened(store) as bus:
        await kept(bus, store, "a")
        await bus.set_status("a", IMPORTING)
    await refused(store, "run 'a': its import or restore is not finished")
    async with opened(store) as bus:
        await bus.set_status("a", "completed")
        await bus.request("$JS.API.STREAM.DELETE.RUN-a")
    await refused(store, "run 'a': its log is not on the server")


async def test_a_fork_whose_history_is_gone_stops_a_collection(store):
    async with opened(store) as bus:
        parent = stored_runs.forked_at(stored_runs.played("a"), "a", 20)
        await kept(bus, store, "b", parent=parent)
    await refused(store, "run 'b': its history, run 'a', is not on the server")


async def test_a_run_under_way_stops_a_collection_for_the_grace(store):
    async with opened(store) as bus:
        history = stored_runs.played("a")
        await bus.create_run("a")
        await stored_runs.keep(bus, "a", history._replace(records=history.records[:9], facts=history.facts[:9]))
    await refused(store, "run 'a': it has not ended", grace=1.0)
    orphan = store.blobs().put(b"nobody names me")
    found = await collect(store, (), 0.0, False, quiet)  # at rest, on a server that only this process has
    assert [item.digest for item in found.gone] == [orphan.digest]


@pytest.fixture
async def outside(tmp_path):
    """An external server: its address with a login, and a connection."""
    server = EmbeddedServer(tmp_path / "outside")
    access = server.start()
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    yield access.url.replace("nats://", f"nats://admin:{access.passwords['admin']}@"), bus
    await bus.close()
    server.stop()


async def test_every_server_that_the_folder_was_used_with_is_read(store, outside):
    nats, bus = outside
    async with opened(store) as own:
        await kept(own, store, "a")
    used = Store(store.folder, nats)
    named = used.blobs().put(b"named by an outside log")
    await bus.create_run("b")
    await stored_runs.keep(bus, "b", stored_runs.played("b"), used.blobs())
    await stored_runs.say(bus, *stored_runs.custom_message("b", 1, {"blob": named.digest}))
    await refused(store, f"logs at {address(nats)} name blobs of")
    await refused(store, "take --grace 1 or more", (nats,), 0.5)
    for item in store.blobs().stored():
        os.utime(item.path, (0, 0))
    assert (await collect(store, (nats,), 1.0, False, quiet)).gone == ()
    assert store.blobs().get(named)
    await bus.create_run("live")
    await refused(store, "run 'live': it has not ended", (nats,), 1.0)


def test_the_commands_archive_remove_collect_and_restore(tmp_path, capsys):
    store = Store(tmp_path / "store")
    store.make()
    folder, out = str(store.folder), str(tmp_path / "a.tar")
    run_sync(fill(store))
    assert main(["archive", "a", "--store", folder, "--out", out, "--json"]) == 0
    assert '"blobs":' in capsys.readouterr().out
    assert main(["remove", "a", "--store", folder]) == 0
    for command in (["status", "a"], ["replay", "a"], ["tail", "a"], ["export", "a"], ["archive", "a"]):
        capsys.readouterr()
        assert main([*command, "--store", folder]) == 2
        assert capsys.readouterr().err == f"resia: run 'a' was removed and is archived at {out}: resia restore {out}\n"
    assert main(["status", "--store", folder]) == 0
    assert capsys.readouterr().out == f"a  removed, archived at {out}\n"
    assert main(["gc", "--store", folder, "--dry-run", "--grace", "0", "--json"]) == 0
    assert '"deleted":false' in capsys.readouterr().out
    assert main(["gc", "--store", folder, "--grace", "0"]) == 0
    assert main(["restore", out, "--store", folder]) == 0
    assert main(["replay", "a", "--store", folder, "--verify"]) == 0
    assert main(["remove", "b", "--store", folder]) == 2
    assert main(["restore", folder, "--store", folder]) == 2


async def fill(store: Store) -> None:
    async with opened(store) as bus:
        await kept(bus, store, "a")


def run_sync(work) -> None:
    import asyncio

    asyncio.run(work)


async def test_archives_and_removals_work_on_a_server_that_another_process_runs(store):
    async with serving(store), opened(store, administrate=True) as bus:
        await kept(bus, store, "a")
        await archived(bus, store, "a")
        await remove_run(bus, "a")
    async with opened(store) as bus:
        assert (await bus.find_run("a")).status == "removed"

"""What docs/operations.md tells an operator to do, done: restore drill, credentials, a full disk, rules that fit."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import stored_runs

from given import clerk, requested
from resia.events import Draft
from resia.events.errors import BlobError, BusError
from resia.runtime import bus, grants
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, connect
from resia.runtime.cli import main
from resia.runtime.server import ACCESS, EmbeddedServer

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "examples" / "monitoring" / "rules.yml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


async def test_the_restore_drill_proves_a_backup(home, tmp_path):
    history = stored_runs.played("kept")
    await home.bus.create_run("kept")
    await stored_runs.keep(home.bus, "kept", history, DirectoryBlobs(home.folder / "blobs"))
    await stored_runs.end(home.bus, "kept", history)
    out = tmp_path / "kept.tar"
    drill = [sys.executable, str(ROOT / "examples" / "restore_drill.py"), "kept"]
    places = ["--store", str(home.folder), "--out", str(out)]
    await home.bus.close()
    home.server.stop()
    done = await asyncio.to_thread(subprocess.run, [*drill, *places], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"holds run 'kept': {len(history.facts)} events, digest " in done.stdout
    assert out.stat().st_size > 0
    again = await asyncio.to_thread(subprocess.run, [*drill, *places], capture_output=True, text=True, timeout=120)
    assert again.returncode == 1  # a backup is never written over
    assert "the drill failed" in again.stderr


async def test_a_granted_login_is_renewed_while_the_server_runs(home, monkeypatch):
    monkeypatch.setattr(bus, "CONNECT_TIMEOUT_S", 1.0)
    access, old = grants.admit(home.folder, "alerts", "mail", ["alerts_sent"])
    connected = await connect(access.url, old.login, old.password)
    _, same = grants.admit(home.folder, "alerts", "mail", ["alerts_sent"])
    assert same == old
    _, new = grants.admit(home.folder, "alerts", "mail", ["alerts_sent"], renew=True)
    assert new.password != old.password
    with pytest.raises(BusError):
        await connect(access.url, old.login, old.password)
    await (await connect(access.url, new.login, new.password)).close()
    with pytest.raises(BusError):  # the server cut the connection, and does not take its password any more
        await connected.request("$JS.API.INFO", timeout=0.5)
    assert not connected.is_open
    with pytest.raises(BusError, match=r"go on: the log at nats://\S+ refuses user 'alerts_mail' .*: check --nats"):
        connected.require_open("go on")
    await connected.close()


def test_passwords_of_roles_are_new_once_their_file_is_removed(tmp_path):
    server = EmbeddedServer(tmp_path / "store")
    before = server.start()
    server.stop()
    assert server.start().passwords == before.passwords  # clients of the one before find it
    server.stop()
    (tmp_path / "store" / ACCESS).unlink()
    after = server.start()
    server.stop()
    assert after.passwords.keys() == before.passwords.keys()
    assert not set(after.passwords.values()) & set(before.passwords.values())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def filled(path: Path, leave: int = 0, step: int = 2**20) -> None:
    """All that is free, taken `step` bytes at a time, but for `leave` bytes."""
    with path.open("wb", buffering=0) as sink, suppress(OSError):
        while sink.write(bytes(step)) == step:
            pass
    os.truncate(path, max(0, path.stat().st_size - leave))


async def until_refused(log: Bus, drafts: Iterator[Draft], acknowledged: list[str]) -> Draft:
    """Append one by one; the first that is not taken."""
    for draft in drafts:
        try:
            await log.append("r", [draft])
        except BusError:
            return draft
        acknowledged.append(draft.id)
    raise AssertionError("the disk was never full")


async def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk, monkeypatch):
    from resia.events import RolloutFailed
    from resia.runtime import append

    monkeypatch.setattr(bus, "ACK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(append, "APPEND_FOR_S", 0.5)
    blobs = DirectoryBlobs(small_disk / "blobs")
    server = EmbeddedServer(small_disk / "store")
    access = server.start()
    log = await connect(access.url, *access.login("admin"))
    await log.create_registry()
    await log.create_run("r")
    kept = blobs.put(b"k" * 2**20)
    writer, acknowledged = clerk("r", "task"), []
    await log.append("r", [clerk("r").genesis(requested())])
    filler = small_disk / "filler"
    filled(filler)
    drafts = (
        writer.draft("c", 0, RolloutFailed("e", "training", 0, "search", "i", number, "x" * 9000), "h", number)
        for number in range(10_000)
    )
    refused = await until_refused(log, drafts, acknowledged)
    with pytest.raises(BlobError, match="No space left"):
        blobs.put(b"n" * 2**21)
    await log.close()
    server.stop()
    filler.unlink()
    access = server.start()
    log = await connect(access.url, *access.login("admin"))
    there = [fact.envelope.id async for fact in log.read("r")][1:]
    assert there[: len(acknowledged)] == acknowledged
    assert len(there) <= len(acknowledged) + 1  # the one that was not acknowledged may be there
    assert blobs.get(kept) == b"k" * 2**20
    assert blobs.get(blobs.put(b"n" * 2**21)) == b"n" * 2**21
    await log.append("r", [refused])  # doing it again is safe either way
    await log.close()
    server.stop()


def test_a_disk_without_any_room_is_told_in_one_sentence(small_disk, capsys):
    (small_disk / "store").mkdir()
    filled(small_disk / "filler")
    filled(small_disk / "rest", step=1)
    assert main(["status", "--store", str(small_disk / "store")]) == 1
    said = capsys.readouterr().err
    assert "resia: a disk is full ([Errno 28] No space left on device): make some room on it by other means" in said
    assert "Traceback" not in said


async def test_part_of_a_batch_on_a_full_disk_is_not_taken_for_done(small_disk, monkeypatch):
    from resia.events import RolloutFailed
    from resia.runtime import append

    monkeypatch.setattr(bus, "ACK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(append, "APPEND_FOR_S", 0.5)
    server = EmbeddedServer(small_disk / "store")
    access = server.start()
    log = await connect(access.url, *access.login("admin"))
    await log.create_registry()
    await log.create_run("r")
    writer = clerk("r", "task")

    def batch(number: int) -> list[Draft]:
        lost = [
            RolloutFailed("e", "training", 0, "search", "i", n, "x" * 9000)
            for n in range(50 * number, 50 * number + 50)
        ]
        return writer.drafts(genesis, 0, lost, "h", 50 * number)

    await log.append("r", [clerk("r").genesis(requested())])
    (genesis,) = [fact async for fact in log.read("r")]
    await log.append("r", batch(0))
    filler = small_disk / "filler"
    filled(filler, leave=700 << 10)
    taken = 1
    with suppress(BusError):
        while taken < 9:
            await log.append("r", batch(taken))
            taken += 1
    there = await log.last_sequence("r")
    assert there % 50 != 1, "part of a batch is seen"
    assert there > 50 * taken, "and nobody was told that all of it is there"
    await log.close()
    server.stop()
    filler.unlink()
    access = server.start()
    log = await connect(access.url, *access.login("admin"))
    last = await log.last_sequence("r")
    assert (last > there, last % 50) == (True, 1), "the server has completed it"
    assert (await log.append("r", batch(last // 50 - 1))) == (last, True)
    await log.close()
    server.stop()


def test_every_metric_of_the_rules_is_one_that_there_is():
    pytest.importorskip("prometheus_client", reason="needs resia[ops]")
    from resia.runtime.metrics import Metrics

    made = {family.name for family in Metrics("task", "w", "0").registry.collect()}
    asked = {re.sub("_(total|count|sum|bucket)$", "", name) for name in re.findall(r"\b(?:resia|process)_\w+", RULES)}
    assert asked
    assert asked <= made
    assert {name for name in made if name.startswith("resia_")} <= {
        re.sub("_(total|count|sum|bucket|info)$", "", name) for name in re.findall(r"`(resia_\w+)", PAGE)
    }


def test_every_alert_is_explained():
    assert set(re.findall(r"alert: (\w+)", RULES)) == set(re.findall(r"^\| `(Resia\w+)` \|", PAGE, re.MULTILINE))

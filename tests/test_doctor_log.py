"""`resia doctor` and a log: what it finds is what the server does. Real servers, each started as it is said to be."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import nats
import pytest

from given import clerk, requested
from resia.events.errors import UsageError
from resia.runtime import bus, doctor_log, doctor_logins, grants
from resia.runtime.bus import connect
from resia.runtime.doctor_log import configured, filesystem_of, look, monitored, weaknesses
from resia.runtime.doctor_logins import NO_RUN, expected, tried
from resia.runtime.permissions import Access
from resia.runtime.resources import package_version
from resia.runtime.server import EmbeddedServer, _free_port, binary
from resia.runtime.skew import clock_skew
from resia.runtime.store import Store

LOG = ["durability", "filesystem", "streams", "replicas", "workers", "clock", "permissions"]


def by_name(found):
    return {check.name: check for check in found}


async def begin(log, run: str, package: str = "") -> None:
    await log.create_run(run)
    writer = clerk(run)._replace(package=package or package_version())
    await log.append(run, [writer.genesis(requested())])


async def test_an_embedded_log_is_found_sound(home, monkeypatch):
    monkeypatch.setattr(doctor_log, "MEMORY", frozenset())  # a temporary folder may be in memory
    await begin(home.bus, "mine")
    before = [(entry, await home.bus.last_sequence(entry.run)) for entry in await home.bus.runs()]
    found = await look(Store(home.folder), None)
    assert [check.name for check in found] == LOG
    assert {check.status for check in found} == {"ok"}, found
    assert [(entry, await home.bus.last_sequence(entry.run)) for entry in await home.bus.runs()] == before


async def test_a_store_whose_server_does_not_run_is_judged_by_its_configuration(tmp_path):
    server = EmbeddedServer(tmp_path / "kept")
    server.start()
    server.stop()
    found = by_name(await look(Store(tmp_path / "kept"), None))
    assert found["durability"].status == "ok"
    assert "no server runs" in found["log"].detail


@pytest.mark.parametrize("interval", ["2m", "1s", None])
def test_a_log_that_syncs_later_is_not_called_durable(tmp_path, interval):
    line = f"  sync_interval: {interval}\n" if interval else ""
    (tmp_path / "server.conf").write_text(f'jetstream {{\n  store_dir: "s"\n{line}}}\n')
    check = configured(tmp_path)
    assert check.status == "fault"
    assert "not durable" in check.detail
    assert "sync_interval: always" in check.fix


@contextmanager
def external(folder: Path, sync: str) -> Iterator[tuple[str, str]]:
    """A server that is not ours, with its monitoring port: (address, URL of the port)."""
    port, monitor, config = _free_port(), _free_port(), folder / "other.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\nhttp: "127.0.0.1:{monitor}"\n'
        f"jetstream {{ store_dir: {json.dumps(str(folder / 'other'))}\n{sync} }}\n"
    )
    process = subprocess.Popen([binary(), "-c", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        while "Server is ready" not in process.stderr.readline():
            assert process.poll() is None
        yield f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{monitor}"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(
    ("sync", "status"), [("sync_interval: always", "ok"), ("", "fault"), ('sync_interval: "1s"', "fault")]
)
async def test_an_external_server_is_called_durable_only_where_it_says_so(tmp_path, sync, status):
    with external(tmp_path, sync) as (address, monitor):
        told = by_name(await look(Store(tmp_path / "store", address), monitor))
        untold = by_name(await look(Store(tmp_path / "store", address), None))
    assert told["durability"].status == status
    assert untold["durability"].status == "warning"
    assert "not known to be durable" in untold["durability"].detail
    assert "--monitor" in untold["durability"].fix
    assert not (tmp_path / "store").exists()


async def test_a_server_that_lets_anybody_do_anything_is_a_fault(tmp_path):
    with external(tmp_path, "sync_interval: always") as (address, _):
        anybody = await connect(address)
        await anybody.create_registry()
        found = by_name(await look(Store(tmp_path / "store", address), None))
        await anybody.close()
    assert found["permissions"].status == "fault"
    assert "anybody may" in found["permissions"].detail


def test_a_monitoring_port_that_does_not_answer_proves_nothing():
    check = monitored(f"http://127.0.0.1:{_free_port()}")
    assert check.status == "warning"
    assert "not known to be durable" in check.detail
    with pytest.raises(UsageError, match="--monitor takes a URL"):
        monitored("ftp://x")


@pytest.fixture
def hasty(monkeypatch):
    """Where nothing will answer, a second of trying is enough."""
    monkeypatch.setattr(bus, "CONNECT_TIMEOUT_S", 1.0)


async def test_no_server_at_all_is_a_fault(tmp_path, hasty):
    found = by_name(await look(Store(tmp_path, f"nats://127.0.0.1:{_free_port()}"), None))
    assert found["log"].status == "fault"


async def test_what_a_login_may_do_is_tried_and_nothing_is_kept(home, monkeypatch):
    await begin(home.bus, "mine")
    _, grant = grants.admit(home.folder, "alerts", "mail", ["alerts_sent"])
    last = await home.bus.last_sequence("mine")
    for login, password, subjects in (
        ("task", home.access.passwords["task"], []),
        ("reader", home.access.passwords["reader"], []),
        (grant.login, grant.password, grant.subjects),
    ):
        connected = await connect(home.access.url, login, password)
        assert await tried(connected, login, subjects) == (login, (), ())
        await connected.close()
    task = await connect(home.access.url, "task", home.access.passwords["task"])
    monkeypatch.setattr(doctor_logins, "ALLOWED_S", doctor_logins.REFUSED_S)
    pretended = await tried(task, "trainer", [])  # as if the server took the one for the other
    await task.close()
    assert pretended.unable == ("share the work of trainer", "write as trainer")
    assert pretended.bold == ("write as task",)
    assert await home.bus.last_sequence("mine") == last
    assert not any(NO_RUN in entry.run for entry in await home.bus.runs())


def test_a_probe_is_of_no_run_that_may_be():
    from resia.events.subjects import check_run

    with pytest.raises(UsageError):
        check_run(NO_RUN)
    must, must_not = expected("feedback", ["resia.*.alerts.alerts_sent.*"])
    assert all(NO_RUN in subject for subject in (*must, *must_not))
    assert not must.keys() & must_not.keys()


async def test_a_password_that_the_server_does_not_take_is_found(home, hasty):
    wrong = Access(home.access.url, {**home.access.passwords, "task": "no"})
    found = await doctor_log.logins(Store(home.folder), wrong)
    assert found.status == "fault"
    assert "task may not connect" in found.detail


async def test_two_series_in_one_run_are_named(home):
    await begin(home.bus, "mixed")
    stranger = clerk("mixed", "task")._replace(package="7.1.0")
    await home.bus.append("mixed", [stranger.draft(None, 0, requested(seed=2), "x", 0)])
    found = by_name(await look(Store(home.folder), None))["workers"]
    assert found.status == "fault"
    assert "'mixed'" in found.detail
    assert "7.1 (task)" in found.detail


async def test_a_run_of_another_series_is_named(home):
    await begin(home.bus, "old", "0.0.9")
    found = by_name(await look(Store(home.folder), None))["workers"]
    assert (found.status, "0.0" in found.detail, package_version() in found.detail) == ("warning", True, True)


async def test_a_clock_that_differs_is_noticed(home, monkeypatch):
    assert abs(await clock_skew(home.bus, time.time)) < 60
    monkeypatch.setattr(doctor_log.time, "time", lambda real=time.time: real() - 3600)
    found = await doctor_log.clock(home.bus)
    assert found.status == "warning"
    assert "behind the server's" in found.detail


async def test_a_stream_that_may_lose_events_is_a_fault(home):
    await begin(home.bus, "weak")
    admin = await nats.connect(home.access.url, user="admin", password=home.access.passwords["admin"])
    stream = admin.jetstream()
    config = (await stream.stream_info("RUN-weak")).config
    await stream.update_stream(config.evolve(max_msgs=1000))
    await admin.close()
    found = by_name(await look(Store(home.folder), None))["streams"]
    assert found.status == "fault"
    assert "run 'weak' has a limit" in found.detail


SOUND = {"storage": "file", "deny_delete": True, "deny_purge": True, "max_msgs": -1, "max_bytes": -1, "max_age": 0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"storage": "memory"}, ["is kept in memory"]),
        ({"persist_mode": "async"}, ["is acknowledged before it is on disk"]),
        ({"deny_purge": False}, ["lets its events be deleted"]),
        ({"max_age": 1}, ["has a limit"]),
    ],
)
def test_weaknesses_of_a_stream(changed, said):
    assert weaknesses({"config": {**SOUND, **changed}, "state": {"messages": 2, "last_seq": 2}}) == said


MOUNTS = (
    "/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\nhost:/x /mnt/my\\040disk nfs4 rw 0 0\n/dev/b /run/kept xfs rw 0 0\n"
)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/store", "ext4"), ("/run/x", "tmpfs"), ("/runner", "ext4"), ("/mnt/my disk/s", "nfs4"), ("/run/kept/s", "xfs")],
)
def test_the_file_system_of_a_store(folder, kind):
    assert filesystem_of(Path(folder), MOUNTS) == kind


async def test_the_command_says_each_finding_and_fails_by_a_fault(home, tmp_path):
    import asyncio
    import sys

    await begin(home.bus, "old", "0.0.9")
    command = [sys.executable, "-m", "resia.runtime.cli", "doctor", "--json", "--store", str(home.folder)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
    said = {line["name"]: line for line in map(msgspec.json.decode, done.stdout.splitlines())}
    assert said.keys() >= {"sandbox", "disk", *LOG}, done.stderr
    assert said["workers"]["status"] == "warning"
    faults = [line for line in said.values() if line["status"] == "fault"]
    assert done.returncode == (1 if faults else 0)

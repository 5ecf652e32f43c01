"""A log on three nodes: the shipped configuration, one election, and what a person is told when something is wrong.

Faults of nodes in the middle of whole runs are `make chaos-cluster`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from given import clerk, drafts_of, requested, step
from resia.events.errors import BusError, UsageError
from resia.events.subjects import ROLES
from resia.runtime.bus import connect, reach
from resia.runtime.cli import main
from resia.runtime.cluster.credentials import NODES, make
from resia.runtime.cluster.looking import looked
from resia.runtime.cluster.nodes import Nodes
from resia.runtime.connecting import target_of
from resia.runtime.doctor_log import look
from resia.runtime.logins import access_to, address
from resia.runtime.permissions import BLOBS, JETSTREAM, READER, WORKERS, Access
from resia.runtime.protocol import IMPORTING, RunEntry
from resia.runtime.server import binary
from resia.runtime.store import Store, opened

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    assert make(folder)
    return folder


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[Nodes]:
    nodes = Nodes(folder)
    nodes.start()
    yield nodes
    nodes.stop()


@pytest.fixture
def logins(nodes: Nodes) -> Path:
    return nodes.folder / "logins"


@pytest.mark.parametrize("name", NODES)
def test_the_configuration_holds_for_every_node(folder, name):
    nodes = Nodes(folder)
    environment = {**os.environ, **nodes.environment(name)}
    done = subprocess.run(
        [binary(), "-c", str(nodes.config), "-t"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sync_interval: always" in nodes.config.read_text()


def test_secrets_are_made_once_and_are_the_owners_alone(tmp_path):
    assert make(tmp_path / "secrets")
    before = (tmp_path / "secrets" / "users.conf").read_bytes()
    authority = (tmp_path / "secrets" / "ca.pem").read_bytes()
    assert not make(tmp_path / "secrets")
    assert make(tmp_path / "secrets", renew=True)
    assert (tmp_path / "secrets" / "users.conf").read_bytes() == before, "new certificates cut nobody off"
    assert (tmp_path / "secrets" / "ca.pem").read_bytes() != authority
    for path in (tmp_path / "secrets").rglob("*"):
        if path.is_file() and path.name != "ca.pem":
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_place_of_blobs_stays_until_another_is_named(tmp_path):
    folder, stored = tmp_path / "secrets", f"$O.{BLOBS}.>"
    assert make(folder, blobs=JETSTREAM)
    certificate, users = (folder / "nats-1.pem").read_bytes(), (folder / "users.conf").read_text()
    assert users.count(stored) == len(WORKERS), "every role may store there"
    assert not make(folder)
    assert not make(folder, blobs=JETSTREAM)
    assert access_to(str(folder / "compose" / "task.json")).blobs == JETSTREAM
    assert make(folder, blobs="s3://bucket/folder")
    assert (folder / "nats-1.pem").read_bytes() == certificate, "no new certificates for that"
    assert stored not in (folder / "users.conf").read_text()
    assert make(folder, renew=True)
    assert {access_to(str(path)).blobs for path in (folder / "compose").glob("*.json")} == {"s3://bucket/folder"}


def test_a_login_file_holds_its_own_password_and_nobody_elses(folder):
    for role in (*ROLES, READER):
        assert set(access_to(str(folder / "compose" / f"{role}.json")).passwords) == {role}
    admin = access_to(str(folder / "compose" / "admin.json"))
    assert set(admin.passwords) == {"admin", READER}
    assert admin.replicas == len(NODES)
    assert admin.ca == str(folder.resolve() / "compose" / "ca.pem"), "where compose.yaml mounts it beside the file"


def test_before_the_first_run_no_node_holds_anything(nodes, logins, tmp_path, capsys):
    task = str(logins / "task.json")
    assert main(["cluster", "status", "--nats", task]) == 0
    assert capsys.readouterr() == ("", "resia: no run was begun here yet, so no node holds a log\n")
    found = {check.name: check for check in asyncio.run(look(Store(tmp_path, task), None))}
    assert found["clock"].detail == "not compared: a server tells its time once a run was begun there"
    assert found["replicas"].detail == "nobody has begun a run in this cluster yet"
    assert found["permissions"].detail == "each may do its part and no more: task", "a worker's login is enough to look"


async def test_a_killed_leader_loses_nothing_and_the_next_goes_on(nodes, logins):
    access = access_to(str(logins / "all.json"))
    bus, other = await reach(access, "admin"), await reach(access, "trainer")
    try:
        await bus.create_registry()
        await bus.create_run("led")
        await bus.append("led", [clerk("led").genesis(requested())])
        batch, later = drafts_of("led", [step(n) for n in range(5)]), drafts_of("led", [step(9), step(10)], 5)
        first = await other.append("led", batch)
        leader, *others = await bus.members("led")
        assert leader.leads
        assert {member.name for member in (leader, *others)} == set(NODES)
        pid = nodes.pid(leader.name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert not (await other.append("led", later)).already
        assert (await bus.members("led"))[0].name != leader.name
        assert await other.append("led", batch) == (6, True), "what was acknowledged stands, and is not written twice"
        assert first.sequence == 6
        assert [fact.sequence async for fact in bus.read("led")] == list(range(1, 9))
        assert await bus.last_sequence("led") == 8
    finally:
        await bus.close()
        await other.close()
    nodes.end(leader.name)
    nodes.launch(leader.name)


async def test_names_are_taken_and_given_back_while_nobody_leads_the_registry(nodes, logins):
    bus = await reach(access_to(str(logins / "all.json")), "admin")
    try:
        await bus.create_registry()
        await bus.runs()  # waits until somebody leads it
        leader = (await bus.members())[0]
        pid = nodes.pid(leader.name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await bus.set_entry(RunEntry("begun", "RUN-begun", IMPORTING))
        await bus.forget_run("begun")
        await bus.create_run("begun")
        assert (await bus.find_run("begun")).status == "active"
        with pytest.raises(UsageError, match="run 'begun' exists already"):
            await bus.create_run("begun")
    finally:
        await bus.close()
    nodes.end(leader.name)
    nodes.launch(leader.name)


async def test_a_log_of_three_copies_is_refused_by_one_server(bus, access):
    bus = await reach(Access(access.url, access.passwords, replicas=3), "admin")
    try:
        with pytest.raises(BusError, match=r"of run 'thrice': fewer nodes are up .*\(replicas > 1 not sup.*lower"):
            await bus.create_run("thrice")
    finally:
        await bus.close()


async def test_a_wrong_password_is_said_in_one_sentence(logins, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 1.0)
    access = access_to(str(logins / "task.json"))
    with pytest.raises(BusError, match=r"refuses user 'task' \(.*Authorization Violation.*\): check --nats"):
        await connect(access.url, "task", "no", ca=access.ca)


async def test_an_authority_that_nobody_knows_is_not_trusted(logins, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 1.0)
    access = access_to(str(logins / "task.json"))
    with pytest.raises(BusError, match=r"certificate of the log at tls://.* is not trusted .*'ca' in a login file"):
        await connect(access.url, *access.login("task"))


def test_a_login_of_another_role_is_refused_before_anything_is_asked(logins, capsys):
    assert main(["worker", "start", "meta", "--nats", str(logins / "task.json")]) == 2
    assert "the login file has no password of 'meta', only of task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not a server's address, and there is no login file of that name"),
        ("{}", "cannot be read"),
        ('{"url": ""}', "has no url"),
        ('{"url": "tls://127.0.0.1:1", "ca": "gone.pem"}', "there is no certificate of an authority at"),
    ],
)
def test_a_login_file_that_is_none_is_a_usage_error(tmp_path, capsys, text, said):
    path = tmp_path / "login.json"
    if text is not None:
        path.write_text(text)
    assert main(["cluster", "status", "--nats", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_who_leads_is_shown(nodes, logins, capsys, monkeypatch):
    monkeypatch.setenv("RESIA_NATS", str(logins / "reader.json"))
    assert main(["cluster", "status", "--answers", "--json"]) == 0
    members = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [member["leads"] for member in members] == [True, False, False]
    assert {member["name"] for member in members} == set(NODES)


async def test_a_cluster_at_rest_is_not_taken_for_one_server(logins, tmp_path):
    bus = await reach(access_to(str(logins / "all.json")), "admin")
    await bus.create_registry()
    await bus.close()
    found = {check.name: check for check in await look(Store(tmp_path, str(logins / "reader.json")), None)}
    assert (found["replicas"].status, found["replicas"].detail) == ("ok", "each log is on 3 servers")


async def test_a_worker_is_no_administrator(tmp_path, logins):
    with pytest.raises(UsageError, match="no password of 'admin', only of task: name with --nats the file of admin"):
        async with opened(Store(tmp_path, str(logins / "task.json")), administrate=True):
            pass


class TestOneNodeAlone:
    """A node whose certificate has expired, and one that has no majority."""

    @pytest.fixture
    def alone(self, tmp_path: Path) -> Iterator[Nodes]:
        make(tmp_path / "alone")
        nodes = Nodes(tmp_path / "alone")
        yield nodes
        nodes.stop()

    def launched(self, nodes: Nodes) -> Access:
        nodes.launch(NODES[0])
        place = nodes._places[NODES[0]]
        passwords = json.loads((nodes.folder / "passwords.json").read_text())
        return Access(f"tls://{place.host}:{place.client}", passwords, str(nodes.folder / "ca.pem"), 3)

    async def test_no_majority_is_said_in_one_sentence(self, alone, monkeypatch):
        monkeypatch.setattr("resia.runtime.bus.PATIENCE_S", 0.2)
        monkeypatch.setattr("resia.runtime.bus.CLUSTER_ACK_S", 0.5)
        bus = await reach(self.launched(alone), "admin")
        try:
            with pytest.raises(BusError, match=r"look up run 'x': the cluster has no leader .* most of its nodes must"):
                await bus.find_run("x")
        finally:
            await bus.close()

    async def test_without_a_majority_the_nodes_are_asked_one_by_one(self, alone, tmp_path, monkeypatch):
        monkeypatch.setattr("resia.runtime.bus.CLUSTER_ACK_S", 0.5)
        monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 1.0)
        access = self.launched(alone)
        absent = f"tls://127.0.0.1:{alone._places[NODES[1]].client}"
        login = tmp_path / "both.json"
        login.write_bytes(msgspec.json.encode(msgspec.structs.replace(access, url=f"{absent},{access.url}")))
        with pytest.raises(BusError, match=f"no leader .*: {absent} does not answer, {access.url} answers$"):
            await looked(str(login), None)

    async def test_an_expired_certificate_is_said_in_one_sentence(self, tmp_path, monkeypatch):
        monkeypatch.setattr("resia.runtime.bus.CONNECT_TIMEOUT_S", 1.0)
        folder = tmp_path / "expired"
        make(folder, days=-1)
        nodes = Nodes(folder)
        try:
            with pytest.raises(BusError, match=r"the certificate of the log at .* has expired: .* --renew"):
                await reach(self.launched(nodes), "admin")
        finally:
            nodes.stop()


def test_the_address_of_a_login_file_has_no_password(logins):
    login = str(logins / "task.json")
    told = address(login)
    assert told == access_to(login).url
    assert told.count("tls://127.0.0.1:") == 3


def test_an_address_in_a_list_is_checked():
    with pytest.raises(UsageError, match="'http://x' is not a server's address"):
        target_of("nats://a:1,http://x", "", "", "")

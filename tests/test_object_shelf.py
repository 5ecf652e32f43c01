"""Blobs in the object store of a real server: by every login that stores them, in parts, once, and read by others."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import nats
import pytest

from resia.events import Blob
from resia.events.errors import BlobError, BusError, UsageError
from resia.events.ids import sha256
from resia.runtime import object_shelf
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, reach
from resia.runtime.logins import check_blobs
from resia.runtime.object_shelf import CHUNK_BYTES, create_bucket
from resia.runtime.permissions import BLOBS, JETSTREAM, READER, WORKERS, Access
from resia.runtime.server import EmbeddedServer, configure
from resia.runtime.shared_blobs import SharedBlobs, blobs_at

LARGE = os.urandom(2 * CHUNK_BYTES + 7)  # two whole parts and a rest
STREAM = f"OBJ_{BLOBS}"


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A server whose logins may store blobs, as those of a cluster may."""
    folder = tmp_path_factory.mktemp("objects")
    server = EmbeddedServer(folder)
    access = msgspec.structs.replace(server.start(), blobs=JETSTREAM)
    configure(folder, access, ())
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)
    asyncio.run(bucket_made(access))
    yield access
    server.stop()


async def bucket_made(access: Access) -> None:
    bus = await reach(access, "admin")
    await create_bucket(bus, access)
    await create_bucket(bus, access)  # as every session does
    await bus.close()


@pytest.fixture
async def admin(access: Access) -> AsyncIterator[Bus]:
    bus = await reach(access, "admin")
    yield bus
    await bus.close()


@pytest.fixture
def places(access, tmp_path):
    """A machine's blobs, with the login of one role alone."""

    def made(name: str, login: str = "task") -> SharedBlobs:
        blobs = blobs_at(tmp_path / name, msgspec.structs.replace(access, passwords={login: access.passwords[login]}))
        assert isinstance(blobs, SharedBlobs)
        return blobs

    return made


async def stored(bus: Bus) -> int:
    answer = msgspec.json.decode(await bus.request(f"$JS.API.STREAM.INFO.{STREAM}"))
    return int(answer["state"]["messages"])


@pytest.mark.parametrize("role", WORKERS)
def test_what_a_role_puts_a_reader_gets(places, role):
    data = f"what {role} says".encode()
    blob = places("here", role).put(data, "text/plain")
    there = places("there", READER)
    assert blob == Blob(sha256(data), len(data), "text/plain")
    assert there.has(blob.digest)
    assert there.get(blob) == data
    assert there.path(blob).read_bytes() == data, "fetched into the cache, for whoever needs a file"


@pytest.mark.parametrize("data", [b"", b"x", LARGE[:CHUNK_BYTES], LARGE], ids=["empty", "one", "whole", "parts"])
def test_bytes_of_any_length_come_back(places, data):
    assert places("there").get(places("here").put(data)) == data


async def test_a_blob_is_stored_once_however_often_it_is_put(places, admin):
    data = os.urandom(CHUNK_BYTES + 1)
    before, here = await stored(admin), places("here")
    here.put(data)
    here.put(data)
    places("there", "trainer").put(data)
    assert await stored(admin) == before + 3, "two parts, and what says where they are"


async def test_of_many_who_put_at_once_all_have_it(places, admin):
    data = os.urandom(1000)
    with ThreadPoolExecutor(4) as pool:
        blobs = set(pool.map(lambda n: places(f"at-{n}", WORKERS[n]).put(data), range(4)))
    assert len(blobs) == 1
    assert places("there").get(blobs.pop()) == data
    name = f"$O.{BLOBS}.M.>"
    found = msgspec.json.decode(
        await admin.request(f"$JS.API.STREAM.INFO.{STREAM}", msgspec.json.encode({"subjects_filter": name}))
    )
    assert set(found["state"]["subjects"].values()) == {1}, "the first who said where it is was heard"


async def test_another_client_reads_it_as_an_object(access, places):
    blob = places("here").put(LARGE)
    client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
    store, sink = await client.jetstream().object_store(BLOBS), io.BytesIO()
    await store.get(blob.digest, writeinto=sink)
    await client.close()
    assert sink.getvalue() == LARGE


def test_a_blob_that_is_nowhere_is_missing(places):
    assert not places("here").has("a" * 64)
    with pytest.raises(BlobError, match=r"blob aaaaaaaaaaaa .* is missing from the log's object store"):
        places("here").get(Blob("a" * 64, 3))


async def test_a_blob_that_was_changed_is_refused(places, admin):
    blob, other = places("here").put(b"true"), places("here").put(b"false")
    about = msgspec.json.decode(
        await admin.request(
            f"$JS.API.STREAM.MSG.GET.{STREAM}", msgspec.json.encode({"last_by_subj": object_shelf._name(other.digest)})
        ),
        type=object_shelf._Answer,
    ).message
    await admin.request(object_shelf._name(blob.digest), about.data)
    with pytest.raises(BlobError, match="does not match its digest"):
        places("there").get(blob)


async def test_nobody_but_the_admin_removes_what_is_stored(places, access, monkeypatch):
    places("here").put(b"kept")
    bus = await reach(access, "task")
    try:
        for service in ("PURGE", "DELETE", "MSG.DELETE", "UPDATE"):
            with pytest.raises(BusError):
                await bus.request(f"$JS.API.STREAM.{service}.{STREAM}", b"{}", timeout=0.2)
        wiped = await bus.request(object_shelf._name("b" * 64), b"{}", headers={"Nats-Rollup": "all"})
        assert "error" in msgspec.json.decode(wiped)
    finally:
        await bus.close()


def test_a_login_that_may_not_store_is_told(places, monkeypatch):
    monkeypatch.setattr(object_shelf, "PATIENCE_S", 0.1)
    monkeypatch.setattr(object_shelf, "ANSWER_S", 0.3)
    with pytest.raises(BlobError, match=r"store blob .* in the log's object store: no answer .* may this login store"):
        places("here", READER).put(b"no")


async def test_it_goes_on_with_a_server_that_came_back(tmp_path):
    server = EmbeddedServer(tmp_path / "home")
    access = msgspec.structs.replace(server.start(), blobs=JETSTREAM)
    await bucket_made(access)
    here = blobs_at(tmp_path / "here", access)
    blob = here.put(b"before")
    os.kill(server.pid, signal.SIGKILL)
    again = asyncio.create_task(asyncio.to_thread(here.put, b"after"))
    server.stop()
    server = EmbeddedServer(tmp_path / "home")
    server.start()
    there = blobs_at(tmp_path / "there", access)
    assert there.get(blob) == b"before"
    assert there.get(await again) == b"after"
    server.stop()


async def test_servers_without_the_object_store_say_who_makes_it(home, tmp_path):
    access = msgspec.structs.replace(home.access, blobs=JETSTREAM)
    with pytest.raises(UsageError, match=r"no object store for blobs yet: begin a run with .* admin's password"):
        blobs_at(tmp_path, access).put(b"x")


@pytest.mark.parametrize("blobs", ["", JETSTREAM, "s3://bucket/folder", "/mnt/shared"])
def test_a_place_of_blobs_is_taken(blobs):
    check_blobs(blobs)


@pytest.mark.parametrize("blobs", ["jetsream", "s3://", "file:///"])
def test_a_place_without_a_name_is_refused(blobs):
    with pytest.raises(UsageError, match="which is no place for them"):
        check_blobs(blobs)


def test_a_place_that_is_none_is_a_usage_error(say, tmp_path):
    code, out, err = say("cluster", "init", "--blobs", "jetsream")
    assert (code, out) == (2, "")
    assert "blobs are in 'jetsream', which is no place for them: name an fsspec URL" in err
    assert not (tmp_path / ".cluster").exists()
    assert type(blobs_at(tmp_path, Access("nats://x"))) is DirectoryBlobs

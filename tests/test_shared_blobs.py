"""Blobs in a store that several machines share, here fsspec's own in memory, each machine with a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from resia.events import Blob
from resia.events.errors import BlobError, UsageError
from resia.events.ids import sha256
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.permissions import Access
from resia.runtime.shared_blobs import SharedBlobs, blobs_at

DATA = b"trajectory " * 400


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


@pytest.fixture
def files():
    return fsspec.filesystem("memory")


def shared(folder: Path, url: str) -> SharedBlobs:
    blobs = blobs_at(folder, Access("nats://x", blobs=url))
    assert isinstance(blobs, SharedBlobs)
    return blobs


def where(url: str, digest: str) -> str:
    return f"/{url.removeprefix('memory://')}/{digest[:2]}/{digest}"


def test_what_one_machine_puts_another_gets(tmp_path, url):
    here, there = shared(tmp_path / "here", url), shared(tmp_path / "there", url)
    blob = here.put(DATA, "text/plain")
    assert blob == Blob(sha256(DATA), len(DATA), "text/plain")
    assert there.has(blob.digest)
    assert there.get(blob) == DATA
    assert there.path(blob).read_bytes() == DATA, "fetched into the cache, for whoever needs a file"
    assert DirectoryBlobs(tmp_path / "there").get(blob) == DATA


def test_a_blob_that_is_nowhere_is_missing(tmp_path, url):
    blobs = shared(tmp_path, url)
    assert not blobs.has("a" * 64)
    with pytest.raises(BlobError, match=f"blob aaaaaaaaaaaa .* is missing from {url}"):
        blobs.get(Blob("a" * 64, 3))


def test_a_password_in_the_url_is_in_no_message(tmp_path, url):
    secret = url.replace("://", "://someone:s3cret@")
    with pytest.raises(BlobError, match=f"is missing from {url}$"):
        shared(tmp_path, secret).get(Blob("a" * 64, 3))
    with pytest.raises(UsageError, match="blobs at nowhere://host/a@b cannot be reached"):
        shared(tmp_path, "nowhere://someone:s3cret@host/a@b")


def test_what_was_changed_in_the_shared_store_is_refused(tmp_path, url, files):
    blob = shared(tmp_path / "here", url).put(DATA)
    files.pipe_file(where(url, blob.digest), b"x" * len(DATA))
    with pytest.raises(BlobError, match="does not match its digest"):
        shared(tmp_path / "there", url).get(blob)


def test_a_damaged_cache_is_fetched_again(tmp_path, url):
    blobs = shared(tmp_path, url)
    blob = blobs.put(DATA)
    blobs.place(blob.digest).write_bytes(b"damaged")
    assert blobs.get(blob) == DATA
    assert DirectoryBlobs(tmp_path).get(blob) == DATA


def test_half_an_object_is_written_again(tmp_path, url, files):
    blobs = shared(tmp_path, url)
    blob = blobs.put(DATA)
    files.pipe_file(where(url, blob.digest), DATA[:10])
    assert blobs.put(DATA) == blob
    assert files.cat_file(where(url, blob.digest)) == DATA


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_what_is_put_on_a_mount_is_on_its_disk_and_there_whole(tmp_path, monkeypatch):
    synced, sync = set[Path](), os.fsync

    def told(handle: int) -> None:
        synced.add(Path(f"/proc/self/fd/{handle}").resolve())
        sync(handle)

    monkeypatch.setattr(os, "fsync", told)
    mount = tmp_path / "mount"
    blob = shared(tmp_path / "here", f"file://{mount}").put(DATA)
    assert (mount / blob.digest[:2] / blob.digest).read_bytes() == DATA
    files = [path for path in synced if path.parent == mount / blob.digest[:2]]
    assert files, "the bytes"
    assert blob.digest not in {path.name for path in files}, "under another name until they are there"
    assert mount / blob.digest[:2] in synced, "and the name"


def test_without_a_url_the_folder_is_all(tmp_path):
    assert type(blobs_at(tmp_path, None)) is DirectoryBlobs
    assert type(blobs_at(tmp_path, Access("nats://x"))) is DirectoryBlobs


def test_a_store_that_nobody_knows_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"blobs at nowhere://x cannot be reached: .*nowhere"):
        shared(tmp_path, "nowhere://x")

"""Blobs in a directory: named by their bytes, whole or not there, and verified on every read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.events import Blob
from resia.events.errors import BlobError
from resia.events.ids import sha256
from resia.runtime.blobs import DirectoryBlobs


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "deep" / "blobs")


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return DirectoryBlobs(tmp_path_factory.mktemp("shared"))


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_what_is_put_is_got_under_its_digest(shared, data):
    blob = shared.put(data, "text/x")
    assert blob == Blob(sha256(data), len(data), "text/x")
    assert shared.get(blob) == data
    assert shared.path(blob).read_bytes() == data


def test_the_same_bytes_are_stored_once(blobs, tmp_path):
    first = blobs.put(b"same")
    written = files(tmp_path)[0].stat()
    again = blobs.put(b"same", "text/other")
    assert again.digest == first.digest
    (only,) = files(tmp_path)
    assert only.stat().st_ino == written.st_ino


def test_a_missing_blob_is_named(blobs):
    with pytest.raises(BlobError, match=r"blob aaaaaaaaaaaa \(text/x\) is missing from"):
        blobs.get(Blob("a" * 64, 3, "text/x"))
    with pytest.raises(BlobError, match="is missing"):
        blobs.path(Blob("a" * 64, 3))


@pytest.mark.parametrize("damage", [b"", b"sam", b"same!", b"tame"])
def test_a_damaged_blob_is_named_and_never_handed_out(blobs, tmp_path, damage):
    blob = blobs.put(b"same")
    files(tmp_path)[0].write_bytes(damage)
    for read in (blobs.get, blobs.path):
        with pytest.raises(BlobError, match=f"blob {blob.digest[:12]} in .* does not match its digest"):
            read(blob)


def test_a_blob_that_cannot_be_read_is_a_blob_error(blobs, tmp_path):
    blob = blobs.put(b"same")
    place = files(tmp_path)[0]
    place.unlink()
    place.mkdir()
    with pytest.raises(BlobError, match=f"read blob {blob.digest[:12]}: IsADirectoryError"):
        blobs.get(blob)


def test_a_folder_that_cannot_be_written_is_a_blob_error(blobs, tmp_path):
    folder = tmp_path / "deep" / "blobs"
    digest = sha256(b"data")
    (folder / digest[:2]).write_bytes(b"in the way")
    with pytest.raises(BlobError, match=f"store blob {digest[:12]} of 4 bytes"):
        blobs.put(b"data")


WRITER = """
import sys
from pathlib import Path
from resia.runtime.blobs import DirectoryBlobs
blobs = DirectoryBlobs(Path(sys.argv[1]))
for n in range(40):
    blob = blobs.put(bytes([n]) * 50_000)
    assert blobs.get(blob) == bytes([n]) * 50_000
"""


def test_processes_that_write_the_same_blobs_leave_each_once_and_whole(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    left = files(tmp_path)
    assert len(left) == 40
    assert all(sha256(p.read_bytes()) == p.name for p in left)


FULL = """
import resource, sys
from pathlib import Path
from resia.events.errors import BlobError
from resia.runtime.blobs import DirectoryBlobs
blobs = DirectoryBlobs(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
blobs.put(b"small")
try:
    blobs.put(b"x" * 1_000_000)
except BlobError as cause:
    print(cause)
"""


def test_a_full_disk_leaves_no_part_of_a_blob_behind(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    digest = sha256(b"x" * 1_000_000)
    assert done.stdout.startswith(f"store blob {digest[:12]} of 1000000 bytes in {tmp_path}: OSError: [Errno 27]")
    assert [p.name for p in files(tmp_path)] == [sha256(b"small")]

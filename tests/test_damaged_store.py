"""A store whose files were damaged: the server is not waited for without end, no log reads as a shorter one, and an
archive brings the run back where it was."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import stored_runs

from resia.events.errors import BusError
from resia.events.subjects import stream
from resia.replay.digest import digest
from resia.runtime import server as module
from resia.runtime.archive import archive_run
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, reach
from resia.runtime.cli import main
from resia.runtime.reading import read_log
from resia.runtime.restoring import restore_file
from resia.runtime.server import EmbeddedServer

RUN = "kept"
HAS_HEADERS = 0x80000000
NUMBER, BYTE = 4, 5  # a stored message begins with its length, four bytes, and its number, eight


def damage(files: Path, message: int) -> None:
    """Flip a bit high in the number of one stored message; the first is 0."""
    block = next(files.glob("msgs/*.blk"))
    data, begin = bytearray(block.read_bytes()), 0
    for _ in range(message):
        begin += struct.unpack_from("<I", data, begin)[0] & ~HAS_HEADERS
    data[begin + NUMBER + BYTE] ^= 2
    block.write_bytes(data)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Bus]:
    server = EmbeddedServer(folder)
    bus = await reach(server.start(), "admin")
    try:
        yield bus
    finally:
        await bus.close()
        server.stop()


@pytest.fixture
async def store(tmp_path) -> Path:
    """A store with one finished run and an archive of it beside it; no server runs."""
    folder = tmp_path / "store"
    blobs, history = DirectoryBlobs(folder / "blobs"), stored_runs.played(RUN)
    async with serving(folder) as bus:
        await bus.create_registry()
        await bus.create_run(RUN)
        await stored_runs.keep(bus, RUN, history, blobs)
        await stored_runs.end(bus, RUN, history)
        await archive_run(bus, blobs, RUN, tmp_path / "kept.tar", lambda *_: None)
    return folder


async def test_a_server_that_never_ends_reading_is_given_up_and_the_run_comes_back(store, tmp_path, monkeypatch):
    files = next(store.glob(f"store/jetstream/*/streams/{stream(RUN)}"))
    damage(files, message=1)
    monkeypatch.setattr(module, "READY_S", 2.0)
    with pytest.raises(BusError, match=rf"still reading the stream {stream(RUN)} after 2 s: .* move .*{RUN} away, and"):
        EmbeddedServer(store).start()
    monkeypatch.undo()
    shutil.move(files, tmp_path / "damaged")
    async with serving(store) as bus:
        restored = await restore_file(bus, DirectoryBlobs(store / "blobs"), tmp_path / "kept.tar", lambda *_: None)
        assert restored.runs == (RUN,)
        assert digest((await read_log(bus, RUN)).at()) == digest(stored_runs.played(RUN).state)


SLOW = """#!{python}
import re, socket, sys, time
for number in range(4):
    time.sleep(0.7)
    print(f"[INF]   Restored 1,0{{number}}0 messages for stream '$G > RUN-{{number}}' in 700ms", flush=True)
port = int(re.search(r"listen: .*:(\\d+)", open(sys.argv[2]).read()).group(1))
with socket.create_server(("127.0.0.1", port)):
    time.sleep(60)
"""


def test_a_server_that_reads_one_log_after_the_other_is_waited_for(tmp_path, monkeypatch):
    slow = tmp_path / "nats-server"
    slow.write_text(SLOW.format(python=sys.executable))
    slow.chmod(0o755)
    monkeypatch.setattr(module, "binary", lambda: str(slow))
    monkeypatch.setattr(module, "READY_S", 2.0)
    server = EmbeddedServer(tmp_path / "store")
    assert server.start().port
    server.stop()


def test_an_end_that_is_gone_is_missed_where_nobody_watched_the_run_either(store, tmp_path, capsys):
    """A restore remembers how far the log reached, as a session that plays a run does."""
    other = tmp_path / "other"
    assert main(["restore", str(tmp_path / "kept.tar"), "--store", str(other)]) == 0
    files = next(other.glob(f"store/jetstream/*/streams/{stream(RUN)}"))
    block = next(files.glob("msgs/*.blk"))
    os.truncate(block, block.stat().st_size // 2)
    (files / "msgs" / "index.db").unlink()
    capsys.readouterr()
    assert main(["status", RUN, "--store", str(other)]) == 1
    end = len(stored_runs.played(RUN).records)
    assert f"was seen to reach event {end}" in capsys.readouterr().err

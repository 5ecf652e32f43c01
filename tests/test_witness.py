"""What was seen of a log, against a log that lost its tail: nothing in the log itself can tell."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from given import clerk, drafts_of, requested, step
from resia.events import Logged
from resia.events.errors import Tampered
from resia.runtime.bus import Bus, connect
from resia.runtime.cli import main
from resia.runtime.reading import load
from resia.runtime.server import EmbeddedServer
from resia.runtime.session import Session, Watch, launch
from resia.runtime.store import Store
from resia.runtime.witness import Witness, hold

RUN, EVENTS = "witnessed", 9


async def written(bus: Bus) -> list[Logged]:
    """A log of EVENTS events."""
    await bus.create_registry()
    await bus.create_run(RUN)
    await bus.append(RUN, [clerk(RUN).genesis(requested())])
    for draft in drafts_of(RUN, [step(number) for number in range(EVENTS - 1)]):
        await bus.append(RUN, [draft])
    return [fact async for fact in bus.read(RUN)]


def see(witness: Witness, log: list[Logged]) -> None:
    for fact in log:
        witness.saw(fact)
    witness.close()


async def stored(folder: Path) -> Store:
    """A store whose server was killed, with a run that was seen to its last event.

    Killed, because a server that stops in order writes down how much there is.
    """
    server = EmbeddedServer(folder)
    access = server.start()
    bus = await connect(access.url, *access.login("admin"))
    see(Store(folder).witness(RUN), await written(bus))
    await bus.close()
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    return Store(folder)


def cut(store: Store, length: int) -> None:
    """The stored block without its last bytes, as a disk leaves it that lied about what it had written."""
    (block,) = store.folder.glob(f"store/jetstream/*/streams/RUN-{RUN}/msgs/*.blk")
    os.truncate(block, block.stat().st_size - length)


async def test_a_log_that_is_whole_is_read(tmp_path):
    store = await stored(tmp_path)
    assert len((await load(store, RUN)).facts) == EVENTS


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("tail",),
        ("replay",),
        ("compare",),
        ("export", "--to", "jsonl"),
        ("archive", "--out", "x.tar"),
    ],
)
def test_no_command_looks_at_a_log_that_lost_its_tail_as_if_it_were_whole(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    store = asyncio.run(stored(tmp_path / "store"))
    cut(store, 1)
    name, *options = command
    assert main([name, RUN, *options, "--store", str(store.folder)]) == 1
    said = capsys.readouterr().err
    assert f"the log ends at event {EVENTS - 1} and was seen to reach event {EVENTS}" in said
    assert not (tmp_path / "x.tar").exists()


def test_nothing_is_forked_from_a_log_that_lost_its_tail(tmp_path, capsys):
    store = asyncio.run(stored(tmp_path))
    cut(store, 1)
    assert main(["fork", f"{RUN}@1", "--store", str(store.folder)]) == 1
    assert f"was seen to reach event {EVENTS}" in capsys.readouterr().err


async def test_a_log_that_lost_its_tail_is_neither_read_nor_gone_on_with(tmp_path):
    store = await stored(tmp_path)
    cut(store, 1)
    expected = f"event {EVENTS} .*gone: the log ends at event {EVENTS - 1} and was seen to reach event {EVENTS}"
    with pytest.raises(Tampered, match=expected):
        await load(store, RUN)
    with pytest.raises(Tampered, match=expected):
        await launch(Session(RUN, None, store), Watch())


async def test_a_new_password_forgets_nothing(home, tmp_path):
    log = await written(home.bus)
    before, after = (Store(tmp_path, f"nats://admin:{word}@one:4222") for word in ("old", "new"))
    see(before.witness(RUN), log)
    assert after.witness(RUN).seen() == (EVENTS, log[-1].leaf)
    assert after.snapshots() == before.snapshots()
    assert Store(tmp_path, "nats://admin:new@two:4222").witness(RUN).seen() is None


async def test_another_event_under_the_last_number_is_noticed(bus, tmp_path):
    log, witness = await written(bus), Witness(tmp_path, RUN)
    see(witness, log)
    await witness.check(bus, RUN)
    with pytest.raises(Tampered, match=f"event {EVENTS} .*another event stands there"):
        hold(witness.seen(), EVENTS, [log[3]])


def test_a_log_may_be_longer_than_it_was_seen_to_be(tmp_path):
    hold(None, 5, ())
    assert Witness(tmp_path, RUN).seen() is None


def test_a_file_that_is_no_record_says_nothing(tmp_path):
    witness = Witness(tmp_path, RUN)
    (tmp_path / "witnesses").mkdir()
    for text in ("", "garbage", "12", "x y", "1 2 3"):
        (tmp_path / "witnesses" / RUN).write_text(text)
        assert witness.seen() is None
    witness.forget()
    assert not (tmp_path / "witnesses" / RUN).exists()


def test_runs_of_one_name_on_two_servers_are_two(tmp_path):
    names = {Witness(tmp_path, RUN, nats)._path for nats in (None, "nats://a:1", "nats://b:1")}
    assert len(names) == 3

"""A state rebuilt from the server: in bulk or through the client, from the start or from a snapshot, it is the same."""

from __future__ import annotations

import sys

import msgspec
import pytest
from stored_runs import end, forked_at, keep, played

from resia.events import Fact
from resia.events.errors import UsageError
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.runtime.bench import rollouts
from resia.runtime.bulk import Address, BulkUnavailable, stored
from resia.runtime.bulk_process import elsewhere
from resia.runtime.logreader import BULK_FROM
from resia.runtime.rebuild import rebuild
from resia.runtime.snapshots import Snapshot, Snapshots

TOLD, FORK = "rebuilt", "rebuilt-fork"
HISTORY = played(TOLD)


@pytest.fixture
async def told(bus):
    """HISTORY on the tests' server, once for all of them."""
    if await bus.find_run(TOLD) is None:
        await bus.create_run(TOLD)
        await keep(bus, TOLD, HISTORY)
        await end(bus, TOLD, HISTORY)
    return TOLD


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(tmp_path / "snapshots")


async def test_every_event_of_a_long_log_comes_once_in_bulk_as_through_the_client(bus, run):
    drafts = list(rollouts(BULK_FROM + 500, run))
    for at in range(0, len(drafts), 1000):
        await bus.append(run, drafts[at : at + 1000])
    last = await bus.last_sequence(run)
    assert last == len(drafts)
    bulk = [message async for chunk in bus.stored(run, 0, last) for message in chunk]
    assert [(m.sequence, m.subject, m.data) for m in bulk] == [
        (number, draft.subject, draft.data) for number, draft in enumerate(drafts, 1)
    ]
    facts = [fact async for fact in bus.read(run)]
    assert [fact.envelope.id for fact in facts if isinstance(fact, Fact)] == [draft.id for draft in drafts]
    assert await rebuild(bus, run) == fold(facts)
    assert await rebuild(bus, run, at=777) == fold(facts[:777])


async def test_a_process_of_its_own_reads_the_same_and_its_end_is_noticed(access, bus, run):
    drafts = list(rollouts(BULK_FROM + 500, run))
    for at in range(0, len(drafts), 1000):
        await bus.append(run, drafts[at : at + 1000])
    host, _, port = access.url.removeprefix("nats://").partition(":")
    address = Address(host, int(port), *access.login("reader"))
    read = elsewhere(address, f"RUN-{run}", 3, len(drafts), "_INBOX.reader.y")
    seen = [message async for frame in read for message in frame]
    assert seen == [(number, draft.subject, draft.data) for number, draft in enumerate(drafts[2:], 3)]
    with pytest.raises(BulkUnavailable, match="ended too early"):
        await anext(elsewhere(address, "RUN-none", 1, 9, "_INBOX.reader.z"))


async def test_a_log_that_is_read_with_help_folds_to_the_same(bus, run, monkeypatch):
    drafts = list(rollouts(BULK_FROM + 500, run))
    for at in range(0, len(drafts), 1000):
        await bus.append(run, drafts[at : at + 1000])
    alone = await rebuild(bus, run)
    monkeypatch.setattr("resia.runtime.logreader.HELPED_FROM", BULK_FROM)
    assert await rebuild(bus, run) == alone
    monkeypatch.setattr(sys, "executable", sys.executable + "-that-is-not-there")
    assert await rebuild(bus, run) == alone


async def test_bulk_reading_says_when_it_cannot(access, bus, run):
    user, password = access.login("reader")
    host, _, port = access.url.removeprefix("nats://").partition(":")

    async def first(address: Address, stream: str, inbox: str) -> None:
        async for _ in stored(address, stream, 1, inbox):
            raise AssertionError("nothing can be read there")

    right = Address(host, int(port), user, password)
    with pytest.raises(BulkUnavailable, match="refuses"):
        await first(right._replace(password="wrong"), f"RUN-{run}", "_INBOX.reader.x")
    with pytest.raises(BulkUnavailable, match="stream not found"):
        await first(right, "RUN-none", "_INBOX.reader.x")
    with pytest.raises(BulkUnavailable, match="no second connection"):
        await first(right._replace(port=1), f"RUN-{run}", "_INBOX.reader.x")


async def test_a_snapshot_is_begun_from_and_changes_nothing(bus, told, snapshots):
    assert digest(await rebuild(bus, told, snapshots=snapshots, every=10)) == digest(HISTORY.state)
    kept = snapshots.load(told)
    assert kept is not None
    assert kept == Snapshot(HISTORY.state, HISTORY.facts[-1].leaf)
    assert digest(kept.state) == digest(HISTORY.state)
    marked = kept._replace(state=msgspec.structs.replace(kept.state, skipped=(99,)))
    assert snapshots.save(told, marked)
    assert (await rebuild(bus, told, snapshots=snapshots)).skipped == (99,)
    snapshots.drop(told)
    assert await rebuild(bus, told, snapshots=snapshots) == HISTORY.state


@pytest.mark.parametrize("at", range(1, len(HISTORY.facts), 29))
def test_every_state_of_a_run_survives_being_kept(snapshots, at):
    state, leaf = fold(HISTORY.facts[:at]), HISTORY.facts[at - 1].leaf
    assert snapshots.save(TOLD, Snapshot(state, leaf))
    assert snapshots.load(TOLD) == Snapshot(state, leaf)


async def test_folding_goes_on_from_a_snapshot_in_the_middle(bus, told, snapshots):
    cut = len(HISTORY.facts) // 2
    assert digest(await rebuild(bus, told, cut, snapshots, every=10)) == digest(fold(HISTORY.facts[:cut]))
    assert digest(await rebuild(bus, told, snapshots=snapshots)) == digest(HISTORY.state)
    assert await rebuild(bus, told, cut - 1, snapshots) == fold(HISTORY.facts[: cut - 1])


async def test_a_snapshot_of_another_log_is_as_good_as_none(bus, told, snapshots):
    wrong = msgspec.structs.replace(HISTORY.state, skipped=(99,))
    assert snapshots.save(told, Snapshot(wrong, "0" * 64))
    assert await rebuild(bus, told, snapshots=snapshots) == HISTORY.state


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "renamed"])
def test_a_damaged_snapshot_is_as_good_as_none(snapshots, damage):
    assert snapshots.save(TOLD, Snapshot(HISTORY.state, "0" * 64))
    path = snapshots.path(TOLD)
    data = path.read_bytes()
    middle = len(data) // 2
    if damage == "renamed":
        path.rename(snapshots.path("other"))
        assert snapshots.load("other") is None
        return
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": data[:middle], "empty": b""}[damage])
    assert snapshots.load(TOLD) is None


def test_a_snapshot_of_other_code_is_as_good_as_none(snapshots, monkeypatch):
    assert snapshots.save(TOLD, Snapshot(HISTORY.state, "0" * 64))
    monkeypatch.setattr("resia.runtime.snapshots.fingerprint", lambda: "other code")
    assert snapshots.load(TOLD) is None


async def test_a_fork_is_never_kept(bus, told, snapshots):
    parent = forked_at(HISTORY, told, HISTORY.state.decisions[0].sequence)
    fork = played(FORK, parent=parent)
    await bus.create_run(FORK)
    await keep(bus, FORK, fork)
    whole = await rebuild(bus, FORK, snapshots=snapshots, every=1)
    assert whole.request is not None
    assert whole.request.parent == parent
    assert snapshots.load(FORK) is None


@pytest.mark.parametrize("at", [0, -1, 10**9])
async def test_a_number_that_the_log_does_not_reach(bus, told, at):
    with pytest.raises(UsageError, match=f"there is no event {at}"):
        await rebuild(bus, told, at)

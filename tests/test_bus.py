"""The log on a real server: idempotent, atomic, fenced, ordered, and safe against what does not belong there."""

from __future__ import annotations

import asyncio

import nats
import pytest
from nats.js import api

from given import BLOB, clerk, drafts_of, requested, step
from resia.events import Candidate, DecisionMade, Draft, Fact, RunCompleted, Skipped
from resia.events.errors import BusError, FenceMoved, UsageError
from resia.runtime.bus import Bus, connect
from resia.runtime.connecting import lost, target_of


def decision(iteration: int = 1) -> DecisionMade:
    return DecisionMade(iteration, "stop", "r", "rule/1", None, None, {}, {}, {}, 0, 0, "0" * 64, 0, 0)


async def facts(bus: Bus, run: str) -> list[Fact | Skipped]:
    return [fact async for fact in bus.read(run)]


async def test_append_twice_appends_once(bus, run):
    drafts = drafts_of(run, [requested()])
    first = await bus.append(run, drafts)
    again = await bus.append(run, drafts)
    assert (first.sequence, first.already) == (1, False)
    assert (again.sequence, again.already) == (1, True)
    assert await bus.last_sequence(run) == 1


async def test_batch_is_atomic_and_idempotent(bus, run):
    drafts = drafts_of(run, [step(n) for n in range(50)])
    first = await bus.append(run, drafts)
    assert await bus.append(run, drafts) == (first.sequence, True), "where it ended, both times"
    read = await facts(bus, run)
    assert [f.sequence for f in read] == list(range(1, 51))
    assert [f.event.step for f in read] == list(range(50))


async def test_batch_that_overlaps_another_is_refused_whole(bus, run):
    drafts = drafts_of(run, [step(n) for n in range(4)])
    await bus.append(run, drafts[1:3])
    with pytest.raises(BusError, match="part of a batch"):
        await bus.append(run, drafts)
    assert await bus.last_sequence(run) == 2


async def test_fence_lets_one_decision_through(bus, run):
    first = clerk(run, "feedback").draft("cause-a", 0, decision(), "decide", 0)
    second = clerk(run, "feedback").draft("cause-b", 0, decision(), "decide", 0)
    await bus.append(run, [first], fence=0)
    with pytest.raises(FenceMoved) as moved:
        await bus.append(run, [second], fence=0)
    assert moved.value.actual == 1
    await bus.append(run, [second], fence=1)
    assert (await bus.append(run, [first], fence=0)).already


async def test_fence_holds_for_a_batch(bus, run):
    maker = clerk(run, "feedback")
    batch = [maker.draft("c", 0, event, "d", n) for n, event in enumerate([step(0), decision(), step(1)])]
    await bus.append(run, batch, fence=0)
    other = [maker.draft("e", 0, event, "d", n) for n, event in enumerate([step(0), decision(), step(1)])]
    with pytest.raises(FenceMoved):
        await bus.append(run, other, fence=0)
    assert await bus.last_sequence(run) == 3


async def test_two_racing_writers_leave_one_copy(access, bus, run):
    other = await connect(access.url, *access.login("trainer"))
    drafts = drafts_of(run, [step(n) for n in range(20)])
    results = await asyncio.gather(bus.append(run, drafts), other.append(run, drafts))
    await other.close()
    assert sorted(x.already for x in results) == [False, True]
    assert await bus.last_sequence(run) == 20


async def test_foreign_message_is_skipped_and_keeps_its_number(access, bus, run):
    await bus.append(run, drafts_of(run, [requested()]))
    client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
    await client.jetstream().publish(f"resia.{run}.user.nonsense.x1", b"not json \x00\xff")
    await client.close()
    await bus.append(run, drafts_of(run, [step(0)], first=1))
    read = await facts(bus, run)
    assert [type(f) for f in read] == [Fact, Skipped, Fact]
    assert read[1].sequence == 2


async def test_follow_sees_what_comes_later(bus, run):
    seen: list[int] = []

    async def follow() -> None:
        async for fact in bus.read(run, follow=True):
            seen.append(fact.sequence)
            if len(seen) == 3:
                return

    task = asyncio.create_task(follow())
    for n in range(3):
        await bus.append(run, drafts_of(run, [step(n)], first=n))
    await asyncio.wait_for(task, 20)
    assert seen == [1, 2, 3]


async def test_what_a_role_has_no_right_to_say_is_skipped(access, bus, run):
    """The server lets a role use subjects of its own name; what it says there must be its own too."""
    await bus.append(run, drafts_of(run, [requested()]))
    task = await nats.connect(access.url, user="task", password=access.passwords["task"], inbox_prefix="_INBOX.task")
    forged = clerk(run, "task").draft(None, 1, decision(), "forged", 0)
    other = clerk("other", "feedback").draft(None, 1, decision(), "elsewhere", 0)
    stream = task.jetstream()
    await stream.publish(forged.subject, forged.data)
    await stream.publish(f"resia.{run}.task.decision-made.x", other.data)
    await task.close()
    read = await facts(bus, run)
    assert [type(f) for f in read] == [Fact, Skipped, Skipped]
    assert "role 'task' does not write decision-made" in read[1].why
    assert "does not belong on subject" in read[2].why


async def test_role_cannot_write_as_another(access, run, bus):
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        refused.put_nowait(str(error))

    trainer = await nats.connect(
        access.url,
        user="trainer",
        password=access.passwords["trainer"],
        error_cb=on_error,
        inbox_prefix="_INBOX.trainer",
    )
    await trainer.publish(f"resia.{run}.feedback.decision-made.x", b"{}")
    await trainer.publish(f"$JS.API.STREAM.DELETE.RUN-{run}", b"")
    texts = [await asyncio.wait_for(refused.get(), 10) for _ in range(2)]
    await trainer.close()
    assert all("permissions violation" in text for text in texts)
    assert await bus.last_sequence(run) == 0


async def test_sealed_run_takes_no_more(bus, run):
    await bus.append(run, drafts_of(run, [requested()]))
    await bus.seal(run)
    with pytest.raises(BusError, match="sealed"):
        await bus.append(run, drafts_of(run, [step(0)], first=1))


async def test_run_name_is_checked_and_unique(bus, run):
    with pytest.raises(UsageError, match="exists already"):
        await bus.create_run(run)
    with pytest.raises(UsageError, match="cannot be used"):
        await bus.create_run("no spaces.or dots")


async def test_nobody_answers():
    with pytest.raises(BusError, match=r"no event log answers at nats://127\.0\.0\.1:9"):
        await connect("nats://127.0.0.1:9")


async def test_once_a_run_events_have_one_id_whoever_writes_them(run):
    ending = RunCompleted("r", Candidate(BLOB), Candidate(BLOB), None, None, "0" * 64, 0, 0)
    one = clerk(run, "feedback", "w1").draft("cause-a", 3, ending, "x", 0)
    two = clerk(run, "feedback", "w2").draft("cause-b", 9, ending, "y", 5)
    assert isinstance(one, Draft)
    assert one.subject == two.subject


async def test_a_cluster_that_knows_a_log_and_no_leader_of_it_is_not_one_without_logs(bus, run, monkeypatch):
    """As nodes answer that have lost their majority: the log is there, and nobody leads it."""
    info = await bus._js.stream_info(f"RUN-{run}")

    async def leaderless(_: str) -> api.StreamInfo:
        return info.evolve(cluster=api.ClusterInfo(name="resia"))

    monkeypatch.setattr(bus._js, "stream_info", leaderless)
    with pytest.raises(BusError, match="the cluster has no leader: most of its nodes must be up"):
        await bus.members(run)


def test_a_log_that_stays_away_is_named_with_what_to_do_and_without_its_token():
    target = target_of("nats://s3cret@one:4222,nats://two:4222", "", "", "")
    assert lost(target, ["Connect call failed"]) == (
        "the log at nats://one:4222,nats://two:4222 went away and did not come back: start its server, then go on with"
        " resia run --resume or resia worker start"
    )


async def test_a_login_in_the_address_is_what_it_stands_for(access):
    password = access.passwords["admin"]
    login = f"%61dmin:%{ord(password[0]):02x}{password[1:]}"
    there = await connect(access.url.replace("nats://", f"nats://{login}@"))
    assert isinstance(await there.runs(), list)
    await there.close()

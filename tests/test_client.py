"""Reading a run from a program of one's own, and tailing it: everything in order, and nobody is disturbed."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import msgspec
import pytest
import stored_runs

from resia.events import Custom, Fact, Skipped
from resia.events.errors import BlobError, BusError, UnknownName, UsageError
from resia.replay.digest import digest
from resia.runtime.bus import connect
from resia.runtime.cli import main
from resia.runtime.client import open_run
from resia.runtime.store import Store, opened, serving
from resia.runtime.tailing import check_types, tail_lines

TAILS = 50


@pytest.fixture
def store(tmp_path) -> Store:
    there = Store(tmp_path / "store")
    there.make()
    return there


@pytest.fixture
async def live(store):
    """The store's server as another process would run it, with a run that nobody has begun."""
    async with serving(store) as log:
        bus = await connect(log.access.url, *log.access.login("admin"))
        await bus.create_registry()
        await bus.create_run("a")
        yield bus
        await bus.close()


def numbers(events) -> list[int]:
    return [event.sequence for event in events]


async def gather(run, **chosen) -> list:
    return [event async for event in run.events(**chosen)]


async def test_events_state_and_blobs_of_a_run(store):
    history = stored_runs.played("a")
    async with opened(store) as bus:
        await bus.create_run("a")
        await stored_runs.keep(bus, "a", history, store.blobs())
    async with open_run("a", store.folder) as run:
        assert await gather(run) == list(history.facts)
        assert await gather(run, start=7, types={"rollout-recorded"}) == [
            fact for fact in history.facts[6:] if fact.envelope.type == "rollout-recorded"
        ]
        assert digest(await run.state()) == digest(history.state)
        assert (await run.state(at=5)).sequence == 5
        rollout = history.of(type(history.facts[8].event))[0]
        assert run.blobs.get(rollout.trajectory) == history.blobs[rollout.trajectory.digest]
        with pytest.raises(BlobError, match="is missing"):
            run.blobs.get(msgspec.structs.replace(rollout.trajectory, digest="0" * 64))
        with pytest.raises(UsageError, match=r"there is no event 999"):
            await run.state(at=999)


async def test_what_is_not_there_is_named(store, tmp_path):
    async with opened(store) as bus:
        await bus.create_run("demo")
    with pytest.raises(UnknownName, match=r"unknown run 'dmo': did you mean demo\?"):
        async with open_run("dmo", store.folder):
            pass
    with pytest.raises(UsageError, match="there is no store at"):
        async with open_run("demo", tmp_path / "none"):
            pass
    async with open_run("demo", str(store.folder)) as run:
        assert await gather(run) == []
        for start in (0, -1, 2):
            with pytest.raises(UsageError, match=f"run 'demo' has events 1 to 0; there is no event {start}"):
                await gather(run, start=start)


async def test_a_reader_of_anothers_server_can_write_nothing(store, live):
    await stored_runs.keep(live, "a", stored_runs.played("a"))
    async with opened(store) as bus:
        assert [entry.run for entry in await bus.runs()] == ["a"]
        with pytest.raises(BusError):
            await bus.request("$JS.API.STREAM.DELETE.RUN-a", timeout=0.3)
        with pytest.raises(BusError):
            await bus.request("$KV.resia-runs.b", b"{}", timeout=0.3)
        with pytest.raises(BusError):
            await bus.request("resia.a.feedback.run-failed.x", b"{}", timeout=0.3)
    assert [entry.run for entry in await live.runs()] == ["a"]
    assert await live.last_sequence("a") == len(stored_runs.played("a").facts)


async def appended_slowly(bus, run: str, history) -> None:
    """Event by event, with messages of others between them."""
    for at in range(len(history.records)):
        one = history._replace(records=history.records[at : at + 1], facts=history.facts[at : at + 1])
        if at in (5, 20):
            await stored_runs.say(bus, *stored_runs.custom_message(run, at, {"n": at}))
            await stored_runs.say(bus, f"resia.{run}.junk.any.{at}", b"junk")
        await stored_runs.keep(bus, run, one)


async def test_fifty_tails_at_once_all_see_everything_and_the_writer_is_not_disturbed(store, live):
    history = stored_runs.played("a")

    async def follow(first: int) -> list:
        async with open_run("a", store) as run:
            return await gather(run, start=first, follow=True)

    tails = [asyncio.create_task(follow(1 + n % 2)) for n in range(TAILS)]
    await appended_slowly(live, "a", history)
    seen = await asyncio.gather(*tails)
    total = len(history.records) + 4
    assert await live.last_sequence("a") == total
    for number, events in enumerate(seen):
        assert numbers(events) == list(range(1 + number % 2, total + 1))
        assert [event for event in events if isinstance(event, Custom | Skipped)] == [
            event for event in seen[0] if isinstance(event, Custom | Skipped)
        ]
    facts = [event.envelope.id for event in seen[0] if isinstance(event, Fact)]
    assert facts == [fact.envelope.id for fact in history.facts]
    assert seen[0][-1].envelope.type == "run-completed"


async def test_following_goes_on_over_custom_facts_and_ends_with_the_run(store, live):
    history = stored_runs.played("a")

    async def follow(**chosen) -> list:
        async with open_run("a", store) as run:
            return await gather(run, follow=True, **chosen)

    tasks = [
        asyncio.create_task(follow()),
        asyncio.create_task(follow(types={"alerts_regression-found", "unreadable"})),
        asyncio.create_task(follow(start=10_000)),  # of an event that never comes: the end is seen all the same
    ]
    await appended_slowly(live, "a", history)
    everything, others, none = await asyncio.gather(*tasks)
    assert len(everything) == len(history.records) + 4
    assert [type(event) for event in others] == [Custom, Skipped, Custom, Skipped]
    assert none == []
    last = await live.last_sequence("a")
    assert numbers(await follow(start=last)) == [last]
    await stored_runs.say(live, *stored_runs.custom_message("a", 99, {}))  # after the end, before the seal
    assert numbers(await follow(start=last)) == [last, last + 1]
    assert numbers(await follow(start=last + 1)) == [last + 1]
    with pytest.raises(UsageError, match=f"has events 1 to {last + 1}; there is no event {last + 2}"):
        await follow(start=last + 2)


async def test_a_message_that_only_looks_like_an_end_ends_nothing(store, live):
    history = stored_runs.played("a")
    first = history._replace(records=history.records[:4], facts=history.facts[:4])
    rest = history._replace(records=history.records[4:], facts=history.facts[4:])
    await stored_runs.keep(live, "a", first)
    await stored_runs.say(live, "resia.a.feedback.run-completed.junk", b"junk")

    async def follow() -> list:
        async with open_run("a", store) as run:
            return await gather(run, follow=True)

    tail = asyncio.create_task(follow())
    await stored_runs.keep(live, "a", rest)
    assert len(await tail) == len(history.records) + 1


async def test_the_lines_of_a_tail(store):
    async with opened(store) as bus:
        await bus.create_run("a")
        await stored_runs.with_junk(bus, "a", stored_runs.played("a"))
        total = await bus.last_sequence("a")
    lines = [line async for line in tail_lines(store, "a", False, frozenset())]
    assert [line["sequence"] for line, _ in lines] == list(range(1, total + 1))
    custom = [line async for line in tail_lines(store, "a", False, check_types(["alerts_regression-found"]))]
    assert [line["payload"]["n"] for line, _ in custom] == [0, 1, 2]
    assert custom[0][1].split()[1:3] == ["alerts", "alerts_regression-found"]
    junk = [line async for line in tail_lines(store, "a", False, check_types(["unreadable"]))]
    assert len(junk) == len(stored_runs.JUNK)
    assert all(text.split()[1] == "unreadable:" for _, text in junk)
    late = [line["sequence"] async for line, _ in tail_lines(store, "a", True, frozenset(), total - 2)]
    assert late == [total - 2, total - 1, total]


def test_the_tail_command_and_its_refusals(tmp_path, capsys):
    asyncio.run(fill(Store(tmp_path)))
    folder = str(tmp_path)
    assert main(["tail", "a", "--store", folder, "--from", "3", "--type", "harness-drafted", "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["tail", "a", "--store", folder, "--follow", "--type", "run-completed", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["type"] == "run-completed"
    for wrong, why in (
        (["--type", "run-complete"], "unknown event type 'run-complete': did you mean run-completed"),
        (["--from", "0"], "there is no event 0"),
        (["--from", "100000"], "there is no event 100000"),
    ):
        assert main(["tail", "a", "--store", folder, *wrong]) == 2
        assert why in capsys.readouterr().err


async def fill(store: Store) -> None:
    store.make()
    async with opened(store) as bus:
        history = stored_runs.played("a")
        await bus.create_run("a")
        await stored_runs.keep(bus, "a", history)
        await stored_runs.end(bus, "a", history)


PROGRAM = """
import asyncio, sys
from resia.runtime.client import open_run

async def main():
    async with open_run("a", store=sys.argv[1]) as run:
        async for event in run.events(follow=True):
            if event.sequence == 3:
                break
        print(event.sequence, event.envelope.type)

asyncio.run(main())
"""


def test_a_program_may_leave_in_the_middle(tmp_path):
    asyncio.run(fill(Store(tmp_path)))
    done = subprocess.run([sys.executable, "-X", "dev", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True)
    # In dev mode asyncio tells of each callback over 100 ms, which says only how busy the machine is.
    told = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.returncode, told) == (0, [])
    assert done.stdout.startswith("3 evaluation-requested")

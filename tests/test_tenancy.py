"""Readers share one server and disturb nobody: not each other when one leaves, and not who needs the store."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from given import clerk, drafts_of, requested, step
from resia.runtime.bus import Bus, connect
from resia.runtime.server import EmbeddedServer, StoreInUse
from resia.runtime.store import Store, opened, serving
from resia.runtime.worker import cancelled

RUN = "watched"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
async def written(store):
    """The store with a run that goes on, and nobody there."""
    store.make()
    async with opened(store, administrate=True) as bus:
        await bus.create_run(RUN)
        await bus.append(RUN, drafts_of(RUN, [requested()]))
    return store


async def follow(store: Store, seen: asyncio.Queue[int]) -> None:
    async with opened(store) as bus:
        async for fact in bus.read(RUN, follow=True):
            seen.put_nowait(fact.sequence)


async def next_of(seen: asyncio.Queue[int]) -> int:
    return await asyncio.wait_for(seen.get(), 30)


@pytest.mark.timeout(120)
async def test_a_run_takes_the_store_from_readers_and_they_see_it_go_on(written):
    seen = [asyncio.Queue[int]() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        tails = [group.create_task(follow(written, queue)) for queue in seen]
        assert [await next_of(queue) for queue in seen] == [1, 1, 1]
        for number in (2, 3):  # and once more after it has left
            async with serving(written, share=False) as own:
                assert own.server is not None
                bus = await connect(own.access.url, *own.access.login("admin"))
                await bus.append(RUN, [clerk(RUN, "trainer").draft("asked", 1, step(number), "told", number)])
                assert [await next_of(queue) for queue in seen] == [number] * 3
                await bus.close()
        await cancelled(tails)


@pytest.mark.timeout(120)
async def test_a_reader_goes_on_when_the_one_that_ran_the_server_leaves(written):
    queue = asyncio.Queue[int]()
    async with AsyncExitStack() as first:
        await first.enter_async_context(opened(written))
        tail = asyncio.create_task(follow(written, queue))
        assert await next_of(queue) == 1
    async with serving(written) as there:
        bus = await connect(there.access.url, *there.access.login("admin"))
        await bus.append(RUN, [clerk(RUN, "trainer").draft("asked", 1, step(2), "told", 2)])
        assert await next_of(queue) == 2
        await bus.close()
    await cancelled([tail])


async def test_many_that_come_at_once_all_get_in(written):
    async def look() -> int:
        async with opened(written) as bus:
            return await bus.last_sequence(RUN)

    assert await asyncio.gather(*(look() for _ in range(8))) == [1] * 8


async def test_who_writes_gives_the_store_up_to_nobody(written):
    async with opened(written, administrate=True):
        with pytest.raises(StoreInUse, match="is in use by another resia"):
            async with serving(written, share=False):
                pass


@pytest.mark.timeout(60)
async def test_a_worker_of_all_runs_hears_of_those_of_a_later_server(written):
    async def active(bus: Bus, wanted: str) -> None:
        async for entry in bus.watch_runs():
            if entry.run == wanted:
                return

    first, second = EmbeddedServer(written.folder), EmbeddedServer(written.folder)
    access = first.start()
    worker = await connect(access.url, *access.login("task"))
    waiting = asyncio.create_task(active(worker, "later"))
    await active(worker, RUN)
    first.stop()
    async with AsyncExitStack() as stack:
        access = second.start()
        stack.callback(second.stop)
        stack.push_async_callback(worker.close)
        admin = await connect(access.url, *access.login("admin"))
        stack.push_async_callback(admin.close)
        await admin.create_run("later")
        await waiting

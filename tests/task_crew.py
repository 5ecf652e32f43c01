"""Task workers as processes of their own: the real loop, bus and rules, invented outcomes of requests."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

from histories import DECIDERS, DECIDES, PERFORMS, World, _Performer
from resia.agents.ports import Line
from resia.events import Event, Fact, Harness, RolloutsRequested
from resia.replay.state import RunState
from resia.runtime.bus import connect
from resia.runtime.server import Access
from resia.runtime.worker import Clerk, Role, Worker

LIMIT_S = 60


class Shelf(dict[str, bytes]):
    """The one harness of the run, whatever digest is asked for."""

    def __init__(self, harness: Harness) -> None:
        super().__init__()
        self._data = harness.encoded()

    def __missing__(self, digest: str) -> bytes:
        return self._data


async def serve(access: Access, run: str, name: str, harness: Harness, together: Barrier | None = None) -> None:
    """One worker until the run has ended; it waits `together` with the first shard in hand."""
    performer, waited = _Performer(World(), {}), list[str]()
    performer.blobs = Shelf(harness)

    def perform(state: RunState, fact: Fact, _: Line) -> Iterator[Sequence[Event]]:
        if isinstance(fact.event, RolloutsRequested) and not waited and together:
            waited.append(fact.envelope.id)
            together.wait(LIMIT_S)  # until every process has a shard in hand
        yield from performer(state, fact)

    bus = await connect(access.url, *access.login("task"))
    role = Role("task", DECIDES["task"], DECIDERS["task"], PERFORMS["task"], perform)
    await Worker(bus, role, Clerk(run, "task", name, "0", lambda: 1.0)).serve()
    await bus.close()


def _main(access: Access, run: str, name: str, harness: Harness, together: Barrier) -> None:
    asyncio.run(serve(access, run, name, harness, together))


@contextmanager
def crew(access: Access, run: str, size: int, harness: Harness) -> Iterator[list[str]]:
    """`size` processes that serve the run until it has ended, by name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all of them
    together = context.Barrier(size)
    names = [f"task-{number}" for number in range(1, size + 1)]
    processes = [context.Process(target=_main, args=(access, run, name, harness, together)) for name in names]
    for process in processes:
        process.start()
    try:
        yield names
        for process in processes:
            process.join(LIMIT_S)
        assert [process.exitcode for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()

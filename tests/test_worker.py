"""The worker loop on a real server, with roles small enough to count what they do."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import nats
import pytest

from given import BLOB, UNSEALED, clerk, requested
from resia.events import (
    ControlFailed,
    ControlMeasured,
    DecisionMade,
    EditFailed,
    EditRequested,
    Event,
    Fact,
    ProbeAlarmed,
    RunCompleted,
    RunFailed,
    RunRequested,
    Skipped,
    TestUnsealed,
)
from resia.events.errors import WorkerError
from resia.replay.state import RunState
from resia.runtime.attending import serve_runs
from resia.runtime.bus import Bus, connect
from resia.runtime.server import EmbeddedServer
from resia.runtime.worker import Role, Worker, cancelled

LIMIT_S = 20
REQUESTS = 12


def alarm(number: int) -> ProbeAlarmed:
    return ProbeAlarmed("e", "toy", number, 0.0, "")


class Toy:
    """Asks for edits once a run is requested, performs each in two batches, and ends the run after the last."""

    def __init__(self, before_settling: Callable[[], None] = lambda: None) -> None:
        self.performed: Counter[str] = Counter()
        self._before_settling = before_settling

    def decide(self, state: RunState, fact: Fact) -> list[Event]:
        match fact.event:
            case RunRequested():
                return [EditRequested(number, BLOB, (), "", {}) for number in range(REQUESTS)]
            case EditFailed() if len(state.settled) == REQUESTS:
                return [RunFailed("the toy is done")]
            case _:
                return []

    def perform(self, state: RunState, fact: Fact, _: object = None) -> Iterator[list[Event]]:
        self.performed[fact.envelope.id] += 1
        yield [alarm(fact.event.iteration), alarm(fact.event.iteration + 100)]
        yield []
        self._before_settling()
        yield [EditFailed(fact.envelope.id, fact.event.iteration, (), "nothing to edit")]

    def role(self) -> Role:
        return Role("feedback", (RunRequested, EditFailed), self.decide, (EditRequested,), self.perform)


@pytest.fixture
async def connected(access):
    """Makes connections as a role, closed at the end."""
    made: list[Bus] = []

    async def connection(role: str = "feedback") -> Bus:
        made.append(await connect(access.url, *access.login(role)))
        return made[-1]

    yield connection
    for bus in made:
        await bus.close()


async def facts(bus: Bus, run: str) -> list[Fact | Skipped]:
    return [fact async for fact in bus.read(run)]


async def begin(bus: Bus, run: str, event: Event | None = None) -> None:
    await bus.append(run, [clerk(run).genesis(event or requested())])


def serving(bus: Bus, run: str, role: Role, worker: str = "w1"):
    return asyncio.wait_for(Worker(bus, role, clerk(run, role.name, worker)).serve(), LIMIT_S)


def counted(log: list[Fact | Skipped]) -> Counter[str]:
    return Counter(f.envelope.type for f in log if isinstance(f, Fact))


ONCE = {
    "run-requested": 1,
    "edit-requested": REQUESTS,
    "probe-alarmed": 2 * REQUESTS,
    "edit-failed": REQUESTS,
    "run-failed": 1,
}


async def test_one_worker_works_until_the_run_has_ended(bus, run, connected):
    await begin(bus, run)
    toy = Toy()
    await serving(await connected(), run, toy.role())
    log = await facts(bus, run)
    assert counted(log) == ONCE
    assert set(toy.performed.values()) == {1}
    by_id = {f.envelope.id: f for f in log}
    assert all(f.envelope.cause in by_id for f in log[1:])
    assert all(f.envelope.basis >= by_id[f.envelope.cause].sequence for f in log[1:])


async def test_batches_of_a_request_stand_in_order_and_whole(bus, run, connected):
    await begin(bus, run)
    await serving(await connected(), run, Toy().role())
    log = await facts(bus, run)
    for request in (f for f in log if isinstance(f.event, EditRequested)):
        made = [f for f in log if f.envelope.cause == request.envelope.id]
        assert [type(f.event) for f in made] == [ProbeAlarmed, ProbeAlarmed, EditFailed]
        assert [f.event.score_change for f in made[:2]] == [request.event.iteration, request.event.iteration + 100]
        assert made[1].sequence == made[0].sequence + 1


async def test_two_workers_of_a_role_share_the_work_and_do_each_thing_once(bus, run, connected):
    await begin(bus, run)
    toys = [Toy(), Toy()]
    await asyncio.gather(*[serving(await connected(), run, toy.role(), f"w{n}") for n, toy in enumerate(toys)])
    assert counted(await facts(bus, run)) == ONCE
    done = toys[0].performed + toys[1].performed
    assert set(done.values()) == {1}
    assert len(done) == REQUESTS


class Crashed(Exception):
    pass


async def test_a_worker_that_dies_before_it_settles_is_followed_by_one_that_repeats_and_changes_nothing(
    bus, run, connected, monkeypatch
):
    """Its first batch is in the log; what it had in hand is handed out again once the server misses it."""
    monkeypatch.setattr("resia.runtime.bus.ACK_WAIT_S", 1.0)
    await begin(bus, run)

    def die() -> None:
        raise Crashed

    broken = Toy(die)
    with pytest.raises(ExceptionGroup) as group:
        await serving(await connected(), run, broken.role())
    assert group.group_contains(Crashed)
    assert counted(await facts(bus, run)) == {"run-requested": 1, "edit-requested": REQUESTS, "probe-alarmed": 2}
    toy = Toy()
    await serving(await connected(), run, toy.role(), "w2")
    assert counted(await facts(bus, run)) == ONCE
    assert set(broken.performed) <= set(toy.performed)


async def test_a_worker_that_dies_between_append_and_acknowledgement_leaves_nothing_to_do_twice(bus, run, connected):
    """The same work again, as after a crash: facts appended by hand under the ids that the worker derives."""
    await begin(bus, run)
    toy, maker = Toy(), clerk(run, "feedback", "died")
    (genesis,) = await facts(bus, run)
    asked = toy.decide(RunState(), genesis)
    await bus.append(run, maker.drafts(genesis, 1, asked, "feedback.run-requested"))
    first = (await facts(bus, run))[1]
    handler, before = "feedback.perform.edit-requested", 0
    for batch in Toy().perform(RunState(), first):
        if batch:
            await bus.append(run, maker.drafts(first, 1, batch, handler, before))
        before += len(batch)
    await serving(await connected(), run, toy.role())
    log = await facts(bus, run)
    assert counted(log) == ONCE
    assert first.envelope.id not in toy.performed  # it was settled
    assert sum(f.envelope.producer.worker == "died" for f in log) == REQUESTS + 3


async def test_a_settled_request_is_not_performed_again_by_a_fresh_durable(bus, run, connected):
    await begin(bus, run)
    (genesis,) = await facts(bus, run)
    maker = clerk(run, "feedback")
    await bus.append(run, maker.drafts(genesis, 1, Toy().decide(RunState(), genesis), "feedback.run-requested"))
    requests = [f for f in await facts(bus, run) if isinstance(f.event, EditRequested)]
    for request in requests[:-1]:
        outcome = EditFailed(request.envelope.id, 0, (), "another did it")
        await bus.append(run, maker.drafts(request, 1, [outcome], "elsewhere"))
    toy = Toy()
    await serving(await connected(), run, toy.role())
    assert toy.performed == {requests[-1].envelope.id: 1}


async def test_foreign_messages_are_skipped_and_stop_nobody(access, bus, run, connected):
    client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
    stream = client.jetstream()
    for n, kind in enumerate(["run-requested", "control-measured", "nonsense"]):
        await stream.publish(f"resia.{run}.task.{kind}.x{n}", b'{"not": "an event"}')
    await client.close()
    await begin(bus, run)
    toy = Toy()
    await serving(await connected(), run, toy.role())
    log = await facts(bus, run)
    assert [type(f) for f in log[:4]] == [Skipped, Skipped, Skipped, Fact]
    assert counted(log) == ONCE


# -- the fence -------------------------------------------------------------------------------------------------------


def decision(iteration: int, basis: int) -> DecisionMade:
    return DecisionMade(iteration, "stop", "r", "toy/1", None, None, {}, {}, {}, 0, 0, "0" * 64, 0, basis)


class Chooser:
    """Decides on every outcome of a control; ends the run after the third decision.

    `rival` is called when it is asked the second time, which is when its first decision is about to be appended, and
    may append one of its own.
    """

    def __init__(self, rival: Callable[[], None]) -> None:
        self._rival = rival
        self.decided_at: list[int] = []

    def decide(self, state: RunState, fact: Fact) -> list[Event]:
        self.decided_at.append(state.iteration)
        if len(self.decided_at) == 2:
            self._rival()
        if state.iteration == 2:
            return [decision(3, state.sequence), RunFailed("enough")]
        return [decision(state.iteration + 1, state.sequence)]

    def role(self) -> Role:
        return Role("feedback", (ControlMeasured, ControlFailed), self.decide)


async def append_as_rival(access, run: str, draft) -> None:
    rival = await connect(access.url, *access.login("feedback"))
    await rival.append(run, [draft], fence=0)
    await rival.close()


async def test_a_decision_that_was_forestalled_is_decided_again_on_the_newer_state(access, bus, run, connected):
    """The rival's decision lands after this worker has folded and before it appends."""
    await begin(bus, run)
    (genesis,) = await facts(bus, run)
    first = clerk(run, "feedback", "rival").draft(genesis.envelope.id, 1, decision(1, 1), "rival", 0)
    with ThreadPoolExecutor(1) as pool:
        # `decide` is synchronous, so the rival connects and appends from a thread of its own while it waits.
        chooser = Chooser(lambda: pool.submit(asyncio.run, append_as_rival(access, run, first)).result(LIMIT_S))
        for n in range(2):
            await bus.append(run, clerk(run, "task").drafts(genesis, 1, [ControlMeasured(f"r{n}", ())], "t", n))
        await serving(await connected("feedback"), run, chooser.role())
    made = [f for f in await facts(bus, run) if isinstance(f.event, DecisionMade)]
    assert [f.event.iteration for f in made] == [1, 2, 3]
    assert [f.envelope.producer.worker for f in made] == ["rival", "w1", "w1"]
    assert chooser.decided_at == [0, 0, 1, 2, 2]  # each decision once to see that it is one, and on the whole log
    assert [f.envelope.basis < f.sequence for f in made] == [True] * 3


async def test_two_deciders_at_once_leave_one_chain_of_decisions(bus, run, connected):
    await begin(bus, run)
    (genesis,) = await facts(bus, run)
    for n in range(6):
        await bus.append(run, clerk(run, "task").drafts(genesis, 1, [ControlMeasured(f"r{n}", ())], "t", n))
    choosers = [Chooser(lambda: None) for _ in range(2)]
    await asyncio.gather(
        *[serving(await connected("feedback"), run, c.role(), f"w{n}") for n, c in enumerate(choosers)]
    )
    made = [f.event.iteration for f in await facts(bus, run) if isinstance(f.event, DecisionMade)]
    assert made == [1, 2, 3]


# -- beginning and end -----------------------------------------------------------------------------------------------


async def test_a_run_that_has_ended_is_left_alone(bus, run, connected):
    await begin(bus, run)
    (genesis,) = await facts(bus, run)
    ending = RunCompleted("r", UNSEALED.champion, UNSEALED.baseline, None, None, "0" * 64, 0, 0)
    await bus.append(run, clerk(run, "feedback").drafts(genesis, 1, [ending], "end"))
    toy = Toy()
    await serving(await connected(), run, toy.role())
    assert counted(await facts(bus, run)) == {"run-requested": 1, "run-completed": 1}
    assert not toy.performed


async def test_no_role_opens_the_test_a_second_time(bus, run, connected):
    """Whatever a role's rules say: the loop refuses before anything is written."""
    await begin(bus, run)
    (genesis,) = await facts(bus, run)
    await bus.append(run, clerk(run, "feedback").drafts(genesis, 1, [UNSEALED], "end"))
    before = await facts(bus, run)
    again = Role("feedback", (TestUnsealed,), lambda state, fact: [UNSEALED])
    with pytest.raises(ExceptionGroup) as caught:
        await serving(await connected(), run, again)
    assert caught.group_contains(WorkerError, match="role feedback would break the seal: .* opens once in a lineage")
    assert await facts(bus, run) == before


async def test_a_worker_without_a_run_serves_all_as_they_appear(tmp_path, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.WATCH_S", 0.1)
    server = EmbeddedServer(tmp_path)
    access = server.start()
    bus = await connect(access.url, *access.login("admin"))
    role = Toy().role()
    task = asyncio.create_task(serve_runs(bus, role, lambda name: clerk(name, "feedback")))
    assert await bus.runs() == [], "nobody has begun any run here yet, and the worker waits for the first"
    assert await bus.find_run("first") is None
    await bus.create_registry()
    for name in ("first", "second"):
        await bus.create_run(name)
        await begin(bus, name)
        async for fact in bus.read(name, follow=True):
            if isinstance(fact.event, RunFailed):
                break
        assert counted(await facts(bus, name)) == ONCE
    await cancelled([task])
    assert task.cancelled()
    await bus.close()
    server.stop()


async def test_a_cancellation_that_was_lost_on_the_way_is_sent_again():
    """As `asyncio.wait_for` of Python 3.11 loses one that comes in the instant of its result."""
    heard: list[int] = []

    async def deaf_once() -> None:
        for attempt in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append(attempt)
                if attempt:
                    raise

    task = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)  # it must have begun to wait
    await asyncio.wait_for(cancelled([task]), LIMIT_S)
    assert heard == [0, 1]
    assert task.cancelled()


async def test_who_is_cancelled_while_it_cancels_others_goes_when_they_have_ended():
    asked = asyncio.Queue[int]()

    async def slow() -> None:
        for number in itertools.count():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked.put_nowait(number)
                if number == 2:
                    raise

    others = [asyncio.create_task(slow())]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(cancelled(others))
    await asyncio.wait_for(asked.get(), LIMIT_S)
    waiting.cancel()
    await asyncio.wait_for(asyncio.wait([waiting]), LIMIT_S)
    assert (others[0].cancelled(), waiting.cancelled()) == (True, True)

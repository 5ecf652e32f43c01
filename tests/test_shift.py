"""Many runs in one process, many processes in one run, and how a worker leaves: nothing lost, nothing waited for.

The server hands out what a lost worker held after ACK_WAIT_S. It is ten minutes here, so what another takes within a
test was given back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import own_workers
import pytest
from msgspec.structs import asdict, replace
from scripted import Tape
from task_crew import crew, serve

from given import BLOB, clerk, requested, step
from histories import POLICY, run_request
from resia.agents.ports import Line
from resia.events import (
    Blob,
    EditFailed,
    EditRequested,
    EvaluationCompleted,
    Event,
    Fact,
    Harness,
    HarnessDrafted,
    RunFailed,
    RunRequested,
    ShardSampled,
    SystemPrompt,
)
from resia.events.errors import BlobError, UsageError
from resia.events.ids import sha256
from resia.replay.state import RunState
from resia.runtime.attending import preferred, serve_runs
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, connect
from resia.runtime.config import ProcessConfig
from resia.runtime.console import View
from resia.runtime.held import held_view
from resia.runtime.holding import Holding, Pace, heard
from resia.runtime.logreader import ARRIVALS_BYTES, ARRIVALS_LIMIT, Arrivals
from resia.runtime.protocol import RunEntry
from resia.runtime.resources import Resources
from resia.runtime.server import running_access
from resia.runtime.shift import Shift, Stalled
from resia.runtime.store import Store
from resia.runtime.supervisor import Died, Supervisor
from resia.runtime.worker import Role, Worker, cancelled

LIMIT_S = 60


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.ACK_WAIT_S", 600.0)


class Gated:
    """Every run asks for `requests` edits, which are performed once `hold(run)` lets them; then the run ends."""

    def __init__(self, requests: int = 2, hold: Callable[[str], None] = lambda run: None) -> None:
        self.performed: list[tuple[str, int]] = []
        self.at_once = self.most = 0
        self._requests, self._hold, self._lock = requests, hold, threading.Lock()

    def decide(self, state: RunState, fact: Fact) -> list[Event]:
        match fact.event:
            case RunRequested():
                return [EditRequested(number, BLOB, (), "", {}) for number in range(self._requests)]
            case EditFailed() if len(state.settled) == self._requests:
                return [RunFailed("done")]
            case _:
                return []

    def perform(self, state: RunState, fact: Fact, _: Line) -> Iterator[list[Event]]:
        run = fact.envelope.run
        with self._lock:
            self.performed.append((run, fact.event.iteration))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self._hold(run)
        with self._lock:
            self.at_once -= 1
        yield [EditFailed(fact.envelope.id, fact.event.iteration, (), "none")]

    def role(self) -> Role:
        return Role("feedback", (RunRequested, EditFailed), self.decide, (EditRequested,), self.perform)


class Gate:
    """Holds one run until it is opened, and says when somebody stands before it."""

    def __init__(self, run: str) -> None:
        self.run, self.reached, self.open = run, threading.Event(), threading.Event()

    def __call__(self, run: str) -> None:
        if run == self.run:
            self.reached.set()
            assert self.open.wait(LIMIT_S)

    async def stood_before(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, LIMIT_S)


async def begin(bus: Bus, run: str) -> None:
    await bus.create_run(run)
    await bus.append(run, [clerk(run).genesis(requested())])


async def until(bus: Bus, run: str, *kinds: type[Event], count: int = 1) -> list[Fact]:
    """The first `count` events of these types, waited for."""
    found: list[Fact] = []
    async with asyncio.timeout(LIMIT_S):
        async for fact in bus.read(run, follow=True):
            if isinstance(fact, Fact) and isinstance(fact.event, kinds):
                found.append(fact)
            if len(found) == count:
                return found
    raise AssertionError("the log ended")


async def becomes(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it is so."""
    async with asyncio.timeout(LIMIT_S):
        while not await true():
            continue


def process_of(bus: Bus, gated: Gated, name: str, shift: Shift | None = None) -> asyncio.Task[None]:
    """All runs, as one worker process serves them."""
    return asyncio.create_task(serve_runs(bus, gated.role(), lambda run: clerk(run, "feedback", name), shift))


def outcomes(facts: Sequence[object]) -> list[Fact]:
    return [fact for fact in facts if isinstance(fact, Fact) and isinstance(fact.event, EditFailed)]


# -- several runs in one process -------------------------------------------------------------------------------------


async def test_a_process_performs_for_one_run_at_a_time_and_runs_take_turns(home):
    gate = Gate("a")
    gated, shift = Gated(3, gate), Shift()
    task = process_of(home.bus, gated, "w1", shift)
    await begin(home.bus, "a")
    await gate.stood_before()
    for run in ("b", "c"):
        await begin(home.bus, run)
        await until(home.bus, run, EditRequested)  # decided while the process performs for another run

    async def both_wait() -> bool:
        await home.bus.last_sequence("a")
        return shift.waiting == 2

    await becomes(both_wait)
    gate.open.set()
    for run in ("a", "b", "c"):
        await until(home.bus, run, RunFailed)
    await cancelled([task])
    assert gated.most == 1
    assert sorted(run for run, _ in gated.performed[:3]) == ["a", "b", "c"]
    assert sorted(gated.performed) == [(run, number) for run in "abc" for number in range(3)]


async def test_what_a_busy_process_cannot_begin_goes_to_a_free_one(home):
    """The first is held by a slow run all the while; the other run ends without it."""
    gate = Gate("slow")
    busy, free = Gated(2, gate), Gated(2)
    tasks = [process_of(home.bus, busy, "w1")]
    await begin(home.bus, "slow")
    await gate.stood_before()
    await begin(home.bus, "quick")
    await until(home.bus, "quick", EditRequested)
    other = await connect(home.access.url, *home.access.login("feedback"))
    tasks.append(process_of(other, free, "w2"))
    await until(home.bus, "quick", RunFailed)
    assert not gate.open.is_set()
    assert [run for run, _ in busy.performed] == ["slow"]
    assert {fact.envelope.producer.worker for fact in outcomes(await own_workers.log_of(home.bus, "quick"))} == {"w2"}
    gate.open.set()
    await until(home.bus, "slow", RunFailed)
    await cancelled(tasks)
    await other.close()


async def test_a_process_serves_so_many_runs_and_the_others_when_one_has_ended(home):
    gate = Gate("first")
    task = process_of(home.bus, Gated(1, gate), "w1", Shift(max_runs=1))
    await begin(home.bus, "first")
    await gate.stood_before()
    await begin(home.bus, "second")
    async for entry in home.bus.watch_runs():  # as the process has heard of it
        if entry.run == "second":
            break
    assert await home.bus.held("second", "feedback") is None
    gate.open.set()
    await until(home.bus, "second", RunFailed)
    await cancelled([task])


def test_workers_that_serve_few_runs_do_not_all_choose_the_same():
    entries = [RunEntry(f"run-{number}", "") for number in range(20)]
    orders = [[entry.run for entry in preferred(f"task-{worker}", entries)] for worker in range(200)]
    assert all(sorted(order) == sorted(entry.run for entry in entries) for order in orders)
    assert len({order[0] for order in orders}) == 20


async def test_two_workers_of_one_run_each_serve_two_runs(home):
    gates = {run: Gate(run) for run in ("a", "b")}
    entries = [RunEntry(run, "") for run in gates]
    workers = {preferred(name, entries)[0].run: name for name in (f"w{n}" for n in range(20))}
    for run in gates:
        await begin(home.bus, run)
    tasks = [process_of(home.bus, Gated(1, gates[run]), workers[run], Shift(max_runs=1)) for run in gates]
    for gate in gates.values():
        await gate.stood_before()
    for run, gate in gates.items():
        gate.open.set()
        await until(home.bus, run, RunFailed)
    await cancelled(tasks)


async def test_a_run_that_was_given_up_is_tried_again(home, monkeypatch):
    monkeypatch.setattr("resia.runtime.attending.RETRY_S", 0.01)
    monkeypatch.setattr("resia.runtime.bus.ACK_WAIT_S", 0.5)  # it fell, and gave nothing back
    falls = iter([True, False])

    def fall(run: str) -> None:
        if next(falls, False):
            raise BlobError("the blobs are not there for the moment")

    task = process_of(home.bus, Gated(1, fall), "w1")
    await begin(home.bus, "r")
    await until(home.bus, "r", RunFailed)
    await cancelled([task])


# -- several processes in one run ------------------------------------------------------------------------------------


SHARED = "shared"
HARNESS = Harness(SystemPrompt("Answer."), "def dispatch(): ...", POLICY, "def extract(): ...")


async def closed(bus: Bus) -> tuple[EvaluationCompleted, Counter[str]]:
    """Ask for an evaluation: its closing event, and the shards that each worker sampled."""
    genesis, data = clerk(SHARED).genesis(run_request(shard_size=2)), HARNESS.encoded()
    await bus.append(SHARED, [genesis])
    drafted = HarnessDrafted(Blob(sha256(data), len(data)), HARNESS.component_digests(), "operators", "first", ())
    await bus.append(SHARED, [clerk(SHARED, "meta").draft(genesis.id, 1, drafted, "meta", 0)])
    (found,) = await until(bus, SHARED, EvaluationCompleted)
    await own_workers.end(bus, SHARED)
    log = [fact for fact in await own_workers.log_of(bus, SHARED) if isinstance(fact, Fact)]
    return found.event, Counter(f.envelope.producer.worker for f in log if isinstance(f.event, ShardSampled))


async def test_processes_share_an_evaluation_and_close_it_as_one_would(home, empty, tmp_path):
    there = running_access(tmp_path / "empty")
    await empty.create_run(SHARED)
    working = asyncio.create_task(serve(there, SHARED, "task-1", HARNESS))
    alone, sampled_alone = await closed(empty)
    await asyncio.wait_for(working, LIMIT_S)
    await home.bus.create_run(SHARED)
    with crew(home.access, SHARED, 3, HARNESS) as names:
        shared, sampled = await closed(home.bus)
    assert shared == alone
    assert set(sampled) == set(names)
    assert sampled.total() == sampled_alone.total() > 3


# -- leaving ---------------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_to_leave_finishes_what_it_has_and_takes_nothing_new(home):
    gate, shift = Gate("r"), Shift()
    first, second = Gated(3, gate), Gated(3)
    task = process_of(home.bus, first, "w1", shift)
    await begin(home.bus, "r")
    await gate.stood_before()
    shift.leave()
    gate.open.set()
    await asyncio.wait_for(task, LIMIT_S)
    assert len(outcomes(await own_workers.log_of(home.bus, "r"))) == len(first.performed) == 1
    task = process_of(home.bus, second, "w2")
    await until(home.bus, "r", RunFailed)
    await cancelled([task])
    assert sorted([*first.performed, *second.performed]) == [("r", 0), ("r", 1), ("r", 2)]


async def test_what_a_worker_had_in_hand_when_it_was_cut_off_is_taken_at_once(home):
    gate = Gate("r")
    first, second = Gated(2, gate), Gated(2)
    task = process_of(home.bus, first, "w1")
    await begin(home.bus, "r")
    await gate.stood_before()
    await cancelled([task])
    task = process_of(home.bus, second, "w2")
    await until(home.bus, "r", RunFailed)
    assert not gate.open.is_set()
    gate.open.set()
    await cancelled([task])
    assert sorted(second.performed) == [("r", 0), ("r", 1)]


async def test_who_is_cut_off_while_it_gives_back_leaves_the_connection_whole(home):
    await begin(home.bus, "r")

    async def attend() -> None:
        async with home.bus.durable("r", "feedback", ["run-requested"]):
            attached.set()
            await asyncio.Event().wait()

    for rounds in range(1, 12):
        attached = asyncio.Event()
        task = asyncio.create_task(attend())
        await asyncio.wait_for(attached.wait(), LIMIT_S)
        for _ in range(rounds):  # the first leads to giving back, a later one interrupts it somewhere
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.wait([task]), LIMIT_S)
        assert await home.bus.last_sequence("r") == 1


async def test_workers_are_restarted_in_turn_and_every_request_is_performed_once(home):
    """Twelve workers one after the other, each told to leave with something in hand."""
    made, performed, count = [Shift() for _ in range(12)], list[tuple[str, int]](), 13
    tasks = []
    await begin(home.bus, "r")
    for number, shift in enumerate(made):
        gate = Gate("r")
        gated = Gated(count, gate)
        tasks.append(process_of(home.bus, gated, f"w{number}", shift))
        await gate.stood_before()
        shift.leave()
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(*tasks[max(number - 1, 0) : number]), LIMIT_S)
        performed.append(gated)
    await asyncio.gather(*tasks)
    last = Gated(count)
    task = process_of(home.bus, last, "last")
    await until(home.bus, "r", RunFailed)
    await cancelled([task])
    assert sorted(n for gated in [*performed, last] for _, n in gated.performed) == list(range(count))


BLOCKED = """
from resia.events import Namespace, StepTrained
from resia.runtime.plugin import worker
import msgspec

blocked = Namespace("blocked")


@blocked.event("seen")
class Seen(msgspec.Struct, frozen=True):
    step: int


@worker(role="blocked", consumes=[StepTrained], emits=[Seen])
def waits(fact, run):
    open({begun!r}, "w").close()
    open({go!r}).close()
    return Seen(fact.event.step)
"""


class Process:
    """`resia worker start` of a function that waits until it is let go."""

    def __init__(self, home, tmp_path, *options: str) -> None:
        self.begun, self.go = tmp_path / "begun", tmp_path / "go"
        os.mkfifo(self.begun)
        os.mkfifo(self.go)
        file = tmp_path / "blocked.py"
        file.write_text(BLOCKED.format(begun=str(self.begun), go=str(self.go)))
        command = own_workers.resia("worker", "start", file, "--run", "r", "--store", home.folder, *options)
        self.popen = own_workers.started(command)

    async def begins(self) -> None:
        await asyncio.wait_for(asyncio.to_thread(lambda: self.begun.open().close()), LIMIT_S)

    def tell(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    async def says(self, text: str) -> None:
        while text not in await asyncio.wait_for(asyncio.to_thread(self.popen.stdout.readline), LIMIT_S):
            assert self.popen.poll() is None

    async def ended(self) -> int:
        code, _, self.errors = await own_workers.finished(self.popen)
        return code


@pytest.fixture
async def stepped(home):
    """A run with two events to work on."""
    await begin(home.bus, "r")
    for number in (1, 2):
        await home.bus.append("r", [clerk("r", "trainer").draft("asked", 1, step(number), "told", number)])
    return home


async def test_sigterm_lets_a_process_finish_one_thing(stepped, tmp_path):
    process = Process(stepped, tmp_path, "--grace", "600")
    await process.begins()
    process.tell()
    await process.says("leaving")
    process.go.open("w").close()
    assert await process.ended() == 128 + signal.SIGTERM
    (seen,) = await own_workers.customs(stepped.bus, 1, "r")
    assert seen.payload == {"step": 1}
    assert await stepped.bus.last_sequence("r") == 4


@pytest.mark.parametrize(("options", "times"), [(("--grace", "0"), 1), (("--grace", "600"), 2)])
async def test_sigterm_without_grace_or_twice_ends_a_process_at_once(stepped, tmp_path, options, times):
    process = Process(stepped, tmp_path, *options)
    await process.begins()
    process.tell()
    if times == 2:
        await process.says("leaving")
        process.tell()
    assert await process.ended() == 128 + signal.SIGTERM
    assert await stepped.bus.last_sequence("r") == 3


async def test_a_process_that_makes_no_progress_ends_with_a_reason(stepped, tmp_path):
    process = Process(stepped, tmp_path, "--stalled", "1")
    await process.begins()
    await process.says("no progress for 1 s")
    assert await process.ended() == 1


async def test_progress_and_computing_put_the_end_of_a_step_off(monkeypatch):
    """Each lasts longer than may be quiet: one says so now and then, one only computes."""
    monkeypatch.setattr("resia.runtime.shift.BUSY", 0.001)
    shift, loop = Shift(stalled_s=0.2), asyncio.get_running_loop()

    async def say() -> float:
        shift.progressed()
        return shift.quiet_s

    def perform() -> Iterator[list[Event]]:
        started = loop.time()
        while loop.time() < started + 0.3:
            assert asyncio.run_coroutine_threadsafe(say(), loop).result(LIMIT_S) < 0.2
        yield []
        used_s = time.process_time()
        while time.process_time() < used_s + 0.3:
            continue
        yield []

    batches = perform()
    assert [await shift.step(batches) for _ in range(3)] == [[], [], None]
    assert shift.threads == 0


async def test_a_step_without_progress_is_given_up_and_known_to_go_on():
    shift, release = Shift(stalled_s=0.01), threading.Event()

    def perform() -> Iterator[list[Event]]:
        assert release.wait(LIMIT_S)
        yield []

    with pytest.raises(Stalled, match=r"no progress for 0.01 s"):
        await shift.step(perform())
    assert shift.threads == 1
    release.set()


async def test_a_time_out_of_the_performance_itself_is_its_own():
    def perform() -> Iterator[list[Event]]:
        raise TimeoutError("the endpoint")
        yield []

    with pytest.raises(TimeoutError, match="the endpoint"):
        await Shift(stalled_s=600.0).step(perform())


async def test_a_frozen_process_is_killed_and_started_again(home, tmp_path, monkeypatch):
    await begin(home.bus, "r")
    user, password = home.access.login("meta")
    config = ProcessConfig(
        url=home.access.url, user=user, password=password, role="meta", worker="meta-1", blobs=tmp_path, run="r"
    )
    deaths: asyncio.Queue[Died] = asyncio.Queue()
    supervisor = Supervisor(tmp_path / "workers", 1, deaths.put_nowait)
    monkeypatch.setattr("resia.runtime.supervisor.LOOK_S", 0.05)
    keeping = asyncio.create_task(supervisor.keep(config))
    await becomes(lambda: asyncio.to_thread((tmp_path / "workers" / "meta-1.beat").exists))
    pid = supervisor.pid("meta-1")
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("resia.runtime.supervisor.FROZEN_S", 0.1)
    died = await asyncio.wait_for(deaths.get(), LIMIT_S)
    monkeypatch.setattr("resia.runtime.supervisor.FROZEN_S", 300.0)
    assert (died.worker, died.code, died.pid) == ("meta-1", -signal.SIGKILL, pid)
    await supervisor.stop()
    await cancelled([keeping])


# -- bounds ----------------------------------------------------------------------------------------------------------


class Sized:
    def __init__(self, size: int) -> None:
        self.data = bytes(size)


@pytest.mark.parametrize(("size", "fit"), [(1 << 20, ARRIVALS_BYTES >> 20), (1, ARRIVALS_LIMIT)])
async def test_a_reader_that_is_slower_than_its_log_holds_the_client_back(size, fit):
    arrivals = Arrivals[Sized]()
    for _ in range(fit - 1):
        await arrivals.put(Sized(size))
    last = asyncio.create_task(arrivals.put(Sized(size)))
    await asyncio.sleep(0)
    assert not last.done()
    assert len(await arrivals.take()) == fit
    await asyncio.wait_for(last, LIMIT_S)


async def test_a_flood_of_messages_that_are_no_events_is_recorded_whole_through_a_short_queue(home, monkeypatch):
    monkeypatch.setattr("resia.runtime.worker.FOREIGN_LIMIT", 2)
    await begin(home.bus, "r")
    for number in range(40):
        await home.bus.publish(f"resia.r.task.nonsense.x{number}", b"{}")
    gated = Gated(1)
    role = gated.role()._replace(quarantines=True)
    task = asyncio.create_task(Worker(home.bus, role, clerk("r", "feedback")).serve())
    await until(home.bus, "r", RunFailed)
    await asyncio.wait_for(task, LIMIT_S)


# -- who holds what --------------------------------------------------------------------------------------------------


def holding(held_s: float, quiet_s: float = 0.0, kind: str = "edit-requested") -> Holding:
    return Holding("r", "feedback", "w1", 2, kind, held_s, quiet_s)


def test_slow_is_many_times_what_others_took():
    tape, pace = Tape(), Pace()
    for fact in tape.add(requested()):
        pace.saw(fact)
    assert (pace.usual_s("edit-requested"), pace.slow(holding(1e6))) == (None, "")
    for number in range(3):
        (asked,) = tape.add(EditRequested(number, BLOB, (), "", {}))
        (done,) = tape.add(EditFailed(asked.envelope.id, number, (), "none"), cause=asked.envelope.id)
        for fact, at in ((asked, 100.0 * number), (done, 100.0 * number + 10.0)):
            pace.saw(replace(fact, envelope=replace(fact.envelope, recorded_at=at)))
    assert pace.usual_s("edit-requested") == 10.0
    assert [pace.slow(holding(s)) for s in (29.0, 40.0)] == ["", ""]
    assert pace.slow(holding(41.0)) == "41 s so far, 10.0 s are usual"
    assert pace.slow(holding(301.0, 301.0, "round-requested")) == "no progress for 301 s"


@pytest.mark.parametrize("data", [{}, {"kind": "tokens"}, {"kind": "holds"}, {"kind": "holds", "run": 3}])
def test_what_is_no_word_of_a_holding_is_passed_over(data):
    assert heard(data) is None


async def test_who_holds_what_is_shown(home, monkeypatch):
    monkeypatch.setattr("resia.runtime.worker.ACK_WAIT_S", 0.3)
    gate = Gate("r")
    other = await connect(home.access.url, *home.access.login("feedback"))
    task = process_of(other, Gated(3, gate), "w1")
    await begin(home.bus, "r")
    await gate.stood_before()
    shown = await held_view(Store(home.folder), None)
    durable, held = shown.lines
    assert durable == {"run": "r", "durable": "feedback", "waiting": 2, "in_hand": 1, "again": 0, "idle": 0}
    assert (held["worker"], held["type"], held["slow"]) == ("w1", "edit-requested", "")
    assert held["held_s"] > 0
    assert shown.parts[1:3] == (
        "  feedback: 2 waiting, 1 in hand, 0 idle",
        "  meta, task: no process has served the run yet",
    )
    gate.open.set()
    await until(home.bus, "r", RunFailed)
    await cancelled([task])
    await other.close()


def test_a_person_who_watches_is_told_once_of_a_slow_worker(capsys):
    view = View("r")
    for seconds in (299.0, 301.0, 305.0):
        view.live(asdict(holding(seconds, seconds)))
    said = [line for line in capsys.readouterr().err.splitlines() if "slow" in line]
    assert len(said) == 1
    assert said[0].endswith("w1 is slow on event 2 (edit-requested): no progress for 301 s")


def test_a_person_who_watches_is_told_whom_a_run_waits_for(capsys):
    View("r").watch().waiting("no process serves task")
    assert capsys.readouterr().err.endswith("no process serves task\n")


# -- what runs share -------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_seed_share_their_domain(tmp_path):
    chosen = {"domain_options": {"synthetic": True, "search_items": 2}}
    requests = [requested(seed=seed, **chosen) for seed in (1, 2)]
    resources = Resources(DirectoryBlobs(tmp_path), None, False)
    digest = resources.domain_digest(requests[0])
    first, second = (resources.domain(replace(request, domain_digest=digest)) for request in requests)
    assert first is second
    with pytest.raises(UsageError, match="is not what the run began with"):
        resources.domain(requests[0])

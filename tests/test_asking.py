"""How a performance asks another role: once for each thing asked, over a real server, and never for ever."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog
from own_workers import end, log_of
from scripted import Tape

from given import BLOB, clerk, requested
from resia.events import (
    ControlFailed,
    ControlRequested,
    Event,
    Fact,
    KernelBenchmarked,
    KernelRejected,
    KernelSubmitted,
    RunRequested,
)
from resia.events.errors import BusError
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.state import RunState
from resia.runtime import asking
from resia.runtime.asking import RecordedLine
from resia.runtime.worker import Role, Worker

LIMIT_S = 30


def kernel(attempt: int = 0, rollout: str = "search/a/0", **config: int) -> KernelSubmitted:
    return KernelSubmitted(rollout, BLOB, config, "strict", "smoke", attempt)


def verdict(state: RunState) -> KernelBenchmarked | None:
    held = state.kernels.get(kernel().key)
    return held.verdict if held else None


class Askers:
    """A role that measures controls: each asks for the same kernel, and fails with what it heard."""

    def __init__(self, count: int) -> None:
        self.heard: list[KernelBenchmarked] = []
        self.waiting, self.errors = threading.Event(), list[Exception]()
        self._count = count

    def decide(self, state: RunState, fact: Fact) -> list[Event]:
        asked = [ControlRequested(n, n) for n in range(self._count)]
        return asked if isinstance(fact.event, RunRequested) else []

    def perform(self, state: RunState, fact: Fact, line: asking.AskingLine) -> Iterator[list[Event]]:
        self.waiting.set()
        try:
            self.heard.append(line.ask(kernel(rollout=f"search/a/{fact.sequence}"), verdict))
        except Exception as error:
            self.errors.append(error)
            raise
        yield [ControlFailed(fact.envelope.id, "heard")]

    def role(self, durable: str = "") -> Role:
        return Role("task", (RunRequested,), self.decide, (ControlRequested,), self.perform, durable=durable)


def bench(answers: Counter[str]) -> Role:
    def perform(state: RunState, fact: Fact, line: object) -> Iterator[list[Event]]:
        answers[fact.envelope.id] += 1
        yield [KernelBenchmarked(fact.envelope.id, "strict", "cpu", {"a": 5.0}, 5.0, 300.0, 1.0, "smoke")]

    return Role("kernel-bench", (), lambda state, fact: [], (KernelSubmitted,), perform)


def serve(bus, run: str, role: Role, worker: str) -> asyncio.Task[None]:
    return asyncio.create_task(Worker(bus, role, clerk(run, role.name, worker)).serve())


async def begun(bus, run: str) -> None:
    await bus.append(run, [clerk(run).genesis(requested())])


async def until(bus, run: str, kind: str, count: int) -> None:
    seen = 0
    async for fact in bus.read(run, follow=True):
        seen += fact.envelope.type == kind
        if seen == count:
            return


async def test_two_that_ask_for_the_same_kernel_make_one_submission_and_hear_one_verdict(bus, run):
    await begun(bus, run)
    askers, answers = Askers(2), Counter[str]()
    tasks = [serve(bus, run, askers.role(), name) for name in ("w1", "w2")]
    tasks.append(serve(bus, run, bench(answers), "b1"))
    await asyncio.wait_for(until(bus, run, "control-failed", 2), LIMIT_S)
    await end(bus, run)
    await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)
    kinds = Counter(fact.envelope.type for fact in await log_of(bus, run))
    assert (kinds["kernel-submitted"], kinds["kernel-benchmarked"], kinds["control-failed"]) == (1, 1, 2)
    assert list(answers.values()) == [1]
    assert [found.geomean_us for found in askers.heard] == [5.0, 5.0]


async def test_who_waits_goes_when_the_run_ends(bus, run):
    await begun(bus, run)
    askers = Askers(1)
    task = serve(bus, run, askers.role(), "w1")
    await asyncio.wait_for(until(bus, run, "kernel-submitted", 1), LIMIT_S)
    await end(bus, run)
    await asyncio.wait_for(task, LIMIT_S)
    assert "control-failed" not in {fact.envelope.type for fact in await log_of(bus, run)}


async def test_a_worker_that_ends_takes_its_thread_with_it_and_another_goes_on(bus, run):
    await begun(bus, run)
    askers = Askers(1)
    task = serve(bus, run, askers.role(), "w1")
    await asyncio.wait_for(until(bus, run, "kernel-submitted", 1), LIMIT_S)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), LIMIT_S)
    assert [type(error) for error in askers.errors] == [BusError]
    assert not askers.heard


async def test_a_long_wait_is_told_by_the_name_of_who_should_answer(bus, run, monkeypatch):
    monkeypatch.setattr(asking, "LONG_S", 0.01)
    await begun(bus, run)
    told, heard = asyncio.Event(), asyncio.get_running_loop()

    def listen(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] == "no kernel-bench has answered":
            assert event["asked"] == "kernel-submitted"
            heard.call_soon_threadsafe(told.set)
        raise structlog.DropEvent

    monkeypatch.setattr(asking, "_log", structlog.wrap_logger(structlog.PrintLogger(), processors=[listen]))
    task = serve(bus, run, Askers(1).role(), "w1")
    await asyncio.wait_for(told.wait(), LIMIT_S)
    await end(bus, run)
    await asyncio.wait_for(task, LIMIT_S)


# -- what a submission is, and what the fold makes of it -------------------------------------------------------------


def test_a_submission_is_known_by_what_is_judged_and_by_nothing_else():
    assert kernel(rows=8, tile=16).key == kernel(1, "validation/b/3", tile=16, rows=8).key
    others = [
        kernel(rows=16),
        KernelSubmitted("r", BLOB, {"rows": 8}, "gpumode", "smoke"),
        KernelSubmitted("r", BLOB, {"rows": 8}, "strict", "full"),
    ]
    assert len({asked.key for asked in [kernel(rows=8), *others]}) == 4
    first, again, next_ = (
        clerk("r", "task").draft(cause, 1, asked, "task.perform.x", 0).id
        for cause, asked in (("c1", kernel()), ("c2", kernel(rollout="other")), ("c1", kernel(1)))
    )
    assert first == again != next_


def judged(tape: Tape, asked: KernelSubmitted, *outcomes: type[KernelBenchmarked] | str, us: float = 5.0) -> None:
    (fact,) = tape.add(asked)
    for found in outcomes:
        submission = fact.envelope.id
        if isinstance(found, str):
            tape.add(KernelRejected(submission, "compile", found, "said so"))
        else:
            tape.add(found(submission, "strict", "cpu", {"a": us}, us, 1500 / us, 1.0, "smoke"))


def test_the_bench_s_own_failure_is_no_verdict_and_the_first_outcome_of_an_attempt_counts():
    tape = Tape()
    judged(tape, kernel(), "infrastructure")
    assert tape.state.kernels[kernel().key].verdict is None
    judged(tape, kernel(1), "wrong", KernelBenchmarked)
    held = tape.state.kernels[kernel().key]
    assert (held.verdict.failure, len(held.outcomes)) == ("wrong", 2)
    tape.add(KernelRejected("unknown", "compile", "wrong", ""))
    assert tape.state.kernels[kernel().key] == held


def test_the_digest_knows_the_verdict_and_no_clock():
    def state(failure: str = "", us: float = 5.0, rollout: str = "a", first: str = "") -> str:
        tape = Tape()
        if first:
            judged(tape, kernel(rollout=rollout), first)
        judged(tape, kernel(int(bool(first)), rollout), failure or KernelBenchmarked, us=us)
        return digest(fold(tape.facts))

    assert state(us=5.0) == state(us=7.0, rollout="b") == state(first="infrastructure")
    assert len({state(), state("wrong"), state("compile"), digest(RunState())}) == 4


def test_a_log_answers_what_it_has_an_answer_to():
    tape = Tape()
    judged(tape, kernel(), KernelBenchmarked)
    line = RecordedLine(lambda: tape.state)
    assert line.ask(kernel(), verdict).geomean_us == 5.0
    with pytest.raises(BusError, match="the log has no answer to this kernel-submitted"):
        line.ask(kernel(rows=8), lambda state: state.kernels.get(kernel(rows=8).key))

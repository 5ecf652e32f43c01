"""Measurements of the log on this machine: durable appends, folds, a long log rebuilt, and how soon a handler hears.

`python -m benchmarks.log` sets the same figures beside the bare client's.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from resia.events import (
    Blob,
    Candidate,
    DecisionMade,
    Draft,
    EvaluationRequested,
    Fact,
    Logged,
    RolloutRecorded,
    RunRequested,
    RunSettings,
    read,
)
from resia.events.errors import BusError
from resia.replay.fold import fold
from resia.replay.state import RunState

from .bus import Bus
from .rebuild import collector_paused, rebuild
from .resources import package_version
from .store import Store, opened
from .worker import Clerk, Follower, cancelled

RUN, BATCHED, LONG, PACED = "bench", "bench-batched", "bench-long", "bench-paced"
BATCH = 1000
SINGLES_SHARE = 10  # single appends are an order slower: take a tenth of them
EVALUATION = 1000  # rollouts an evaluation
MILLION = 1_000_000
PACE = 1000  # events a second
REPEATS = 3


def rollouts(count: int, run: str = RUN) -> Iterator[Draft]:
    """Drafts of a log with `count` recorded rollouts, by far the commonest event: the run's request, then evaluations
    of 1,000 rollouts each with a decision after it, as in a run."""
    settings = RunSettings()
    user, task, feedback = (
        Clerk(run, role, "bench", package_version(), time.time) for role in ("user", "task", "feedback")
    )
    genesis = user.genesis(RunRequested(settings, settings.digest(), "", "", {}, ()))
    yield genesis
    sequence, decided = 1, 0
    for number in range(0, count, EVALUATION):
        iteration = number // EVALUATION
        asked = task.draft(genesis.id, sequence, EvaluationRequested("candidate", iteration, _AGENT, ()), "ask", number)
        yield asked
        sequence += 1
        for n in range(number, min(count, number + EVALUATION)):
            yield task.draft(asked.id, sequence, _rollout(asked.id, n), "bench", n)
            sequence += 1
        yield feedback.draft(asked.id, sequence, _decision(iteration, decided, sequence), "decide", 0)
        decided, sequence = sequence, sequence + 1


def _decision(iteration: int, root_from: int, root_to: int) -> DecisionMade:
    return DecisionMade(
        iteration, "edit_harness", "", "rule/1", None, None, {}, {}, {}, 0, 0, "0" * 64, root_from, root_to
    )


_BLOB = Blob("a" * 64, 900)
_AGENT = Candidate(_BLOB)


def _rollout(evaluation: str, n: int) -> RolloutRecorded:
    return RolloutRecorded(
        evaluation=evaluation,
        purpose="candidate",
        round=0,
        split="search",
        item=f"item-{n % 50:03d}",
        index=n // 50,
        seed=n,
        greedy=False,
        reward=0.25,
        success=True,
        failure=None,
        detail="",
        metrics={"audited": 0.25, "published": 0.3},
        answer=f"knn=5 t=3 order=rev log=0 scale=1 round={n % 7}",
        step_rewards=(0.25,),
        prompt_tokens=300,
        completion_tokens=24,
        trajectory=_BLOB,
    )


class Latencies(NamedTuple):
    """Milliseconds from the call that published an event to the entry of its handler, one an event."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.ms, n=100)[98]


async def log(events: int, long: int, progress: Callable[[str], None]) -> dict[str, float]:
    """Figures of the log, on an embedded server with fsync before every acknowledgement, in a temporary folder below
    the present one. Rates and times of rebuilding are the best of three.

    `append_single_per_s`; `append_batch_per_s` with 1,000 a batch and `client_batch_per_s`, the same bytes with nothing
    but a batch's own headers, in turns; `fold_per_s` of facts in memory, `decode_fold_per_s` of their bytes; `p50_ms`
    and `p99_ms` from append to handler at 1,000 events a second, medians of three; `replay_s` for `replay_events`, the
    log of `long` rollouts read from the server, decoded and folded, and the same as `replay_1m_s` when these are a
    million or more.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        async with opened(Store(Path(folder))) as bus:
            progress(f"{min(events, 5 * PACE):,} events at {PACE:,} a second, {REPEATS} times")
            result = await _heard(bus, min(events, 5 * PACE))
            progress(f"appending {events:,} events")
            result |= {"append_single_per_s": await _singles(bus, events // SINGLES_SHARE)}
            result |= await _batches(bus, events)
            progress("folding")
            result |= folds(events)
            progress(f"a log of {long:,} rollouts")
            return result | await replayed(bus, long)


async def _heard(bus: Bus, count: int) -> dict[str, float]:
    found = []
    for number in range(REPEATS):
        run = f"{PACED}-{number}"
        await bus.create_run(run)
        found.append(await paced(bus, run, count))
    return {
        "p50_ms": statistics.median(each.median for each in found),
        "p99_ms": statistics.median(each.p99 for each in found),
    }


async def _singles(bus: Bus, events: int) -> float:
    await bus.create_run(RUN)
    drafts = list(rollouts(events))

    async def write() -> None:
        for draft in drafts:
            await bus.append(RUN, [draft])

    return len(drafts) / await _seconds_of(write())


async def _batches(bus: Bus, events: int) -> dict[str, float]:
    """Ours and the client's, in turns, each on a stream of its own."""
    writers: dict[str, Callable[[str, Sequence[Draft]], Awaitable[object]]] = {
        "append": bus.append,
        "client": partial(_bare_batch, bus),
    }
    rates: dict[str, list[float]] = {who: [] for who in writers}
    for number in range(REPEATS):
        for who, write in writers.items():
            run = f"{BATCHED}-{who}-{number}"
            await bus.create_run(run)
            batches = list(_batched(rollouts(events, run)))
            seconds = await _seconds_of(_each(write, run, batches))
            rates[who].append(sum(map(len, batches)) / seconds)
    return {f"{who}_batch_per_s": max(found) for who, found in rates.items()}


async def _each(
    write: Callable[[str, Sequence[Draft]], Awaitable[object]], run: str, batches: list[list[Draft]]
) -> None:
    for batch in batches:
        await write(run, batch)


async def _bare_batch(bus: Bus, _: str, drafts: Sequence[Draft]) -> None:
    """An atomic batch as the client alone would write it: no expectation, no fence, no retry."""
    batch = drafts[0].id
    for number, draft in enumerate(drafts[:-1], 1):
        fields = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        await bus.publish(draft.subject, draft.data, headers=fields)
    fields = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(drafts)), "Nats-Batch-Commit": "1"}
    answer = await bus.request(drafts[-1].subject, drafts[-1].data, headers=fields)
    if msgspec.json.decode(answer, type=dict[str, Any]).get("count") != len(drafts):
        raise BusError(f"the batch of {len(drafts)} events was answered with {answer.decode()}")


def _batched(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    rest = iter(drafts)
    while batch := list(islice(rest, BATCH)):
        yield batch


async def _seconds_of(work: Coroutine[None, None, None]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def folds(events: int) -> dict[str, float]:
    """`fold_per_s` of facts and `decode_fold_per_s` of their bytes, in memory; the best of three each."""
    drafts = list(rollouts(events))

    def decoded() -> list[Fact]:
        facts = (read(n, draft.subject, draft.data) for n, draft in enumerate(drafts, 1))
        return [fact for fact in facts if isinstance(fact, Fact)]

    facts = decoded()
    with collector_paused():  # as `rebuild` does
        fold_s = min(_seconds(lambda: fold(facts)) for _ in range(REPEATS))
        both_s = min(_seconds(lambda: fold(decoded())) for _ in range(REPEATS))
    return {"fold_per_s": len(drafts) / fold_s, "decode_fold_per_s": len(drafts) / both_s}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def replayed(bus: Bus, count: int) -> dict[str, float]:
    """Append `count` rollouts to a run of their own, unmeasured; seconds to rebuild its state, the best of three."""
    await bus.create_run(LONG)
    for batch in _batched(rollouts(count, LONG)):
        await bus.append(LONG, batch)
    result: dict[str, float] = {"replay_events": await bus.last_sequence(LONG)}
    result["replay_s"] = await _rebuild_s(bus)
    if count >= MILLION:
        result["replay_1m_s"] = result["replay_s"]
    return result


async def _rebuild_s(bus: Bus) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        state = await rebuild(bus, LONG)
        seconds.append(time.perf_counter() - started)
        del state  # freeing it is not part of it
    return min(seconds)


async def paced(bus: Bus, run: str, count: int, pace: float = PACE) -> Latencies:
    """Append `count` rollouts and more one by one, `pace` a second, to an empty run that a `Follower` folds as a
    worker's does, and tells its handler of. An append that is late delays no other."""
    drafts = list(rollouts(count, run))
    called: dict[str, float] = {}
    heard: dict[str, float] = {}
    all_heard = asyncio.Event()

    def handler(_: RunState, fact: Logged) -> None:
        if isinstance(fact, Fact):
            heard[fact.envelope.id] = time.perf_counter()
        if len(heard) == len(drafts):
            all_heard.set()

    async def publish(draft: Draft) -> None:
        called[draft.id] = time.perf_counter()
        await bus.append(run, [draft])

    async with asyncio.TaskGroup() as group:
        following = group.create_task(Follower(bus, run).follow(handler))
        await on_time([publish(draft) for draft in drafts], pace)
        await all_heard.wait()
        await cancelled([following])
    return Latencies(tuple((heard[id_] - start) * 1000 for id_, start in called.items()))


async def on_time(work: Sequence[Coroutine[None, None, None]], pace: float) -> None:
    """Start each when it is due, `pace` a second, whether or not those before it are done; return when all are."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, coroutine in enumerate(work):
            group.create_task(coroutine)
            await asyncio.sleep(max(0.0, started + (number + 1) / pace - time.perf_counter()))

"""Workers of a user's own: what a declaration may say, and what becomes of one that does not keep to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import own_workers
import pytest

from given import BLOB, CANDIDATE, clerk, requested
from resia.events import (
    Custom,
    Draft,
    EvaluationCompleted,
    EvaluationRequested,
    KernelRejected,
    KernelSubmitted,
    Namespace,
    RunCompleted,
    RunRequested,
    ShardSampled,
)
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.custom import CUSTOM
from resia.events.errors import UnknownName, UsageError, WorkerError
from resia.events.ids import event_id
from resia.replay.verify import check
from resia.runtime.attending import serve_runs
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import BATCH_LIMIT, connect
from resia.runtime.grants import admit
from resia.runtime.namespaces import register
from resia.runtime.plugin import declaration_of, role_of, worker
from resia.runtime.worker import Worker, cancelled

LIMIT_S = 20
SUBMITTED = KernelSubmitted("rollout", BLOB, {}, "strict")
probe = Namespace("probe")


@probe.event("seen")
class Seen(msgspec.Struct, frozen=True):
    number: int


@probe.event("lost")
class Lost(msgspec.Struct, frozen=True):
    why: str


def declared(function, consumes=("evaluation-completed",), emits=(Seen,), role="probe", **options):
    return declaration_of(worker(role=role, consumes=consumes, emits=emits, **options)(function))


def nothing(fact, run):
    return None


# -- declarations ----------------------------------------------------------------------------------------------------


def test_a_declared_function_stays_what_it_is():
    found = declared(nothing, consumes=[EvaluationCompleted, "evaluation-completed", "other_package-event"])
    assert nothing(None, None) is None
    assert found.name == "nothing"
    assert found.consumes == ("evaluation-completed", "other_package-event")
    assert (found.writes, found.login) == (("probe_seen",), "probe_nothing")
    assert declaration_of(print) is None


class Stranger(msgspec.Struct, frozen=True):
    number: int


@probe.event("unwritable")
class Unwritable(msgspec.Struct, frozen=True):
    what: object
    how: type


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"role": "a.b"}, "role 'a.b' cannot be used: take small letters"),
        ({"role": "*"}, "role '*' cannot be used"),
        ({"role": ""}, "role '' cannot be used"),
        ({"role": 7}, "role '7' cannot be used"),
        ({"role": "x" * 32}, "at most 31"),
        ({"role": "admin"}, "role 'admin' is no worker's"),
        ({"role": "reader"}, "role 'reader' is no worker's"),
        ({"role": "user"}, "role 'user' is no worker's"),
        ({"consumes": ()}, "a worker that consumes nothing never runs"),
        (
            {"consumes": ["evaluation-complete"]},
            "unknown event type 'evaluation-complete': did you mean evaluation-completed",
        ),
        ({"consumes": ["evaluation_completed"]}, "did you mean evaluation-completed"),
        ({"consumes": ["*"]}, "unknown event type '*'"),
        ({"consumes": [Stranger]}, "unknown event class 'Stranger'"),
        ({"consumes": ["run-completed"]}, "no worker acts on run-completed"),
        ({"consumes": [RunCompleted]}, "no worker acts on run-completed"),
        ({"emits": ["probe_seen"]}, "emits takes event classes, and 'probe_seen' is a text"),
        ({"emits": [Stranger]}, "unknown event class 'Stranger': did you mean"),
        ({"emits": [Unwritable]}, "event class Unwritable cannot be written to the log"),
        (
            {"emits": [EvaluationRequested]},
            "role 'probe' cannot write evaluation-requested: it may write custom events",
        ),
        (
            {"role": "trainer", "emits": [ShardSampled]},
            "it may write drift-failed or drift-measured or ",
        ),
        ({"role": "task", "emits": [EvaluationCompleted]}, "cannot write evaluation-completed: it may write control-f"),
        ({"role": "meta", "emits": [RunRequested]}, "it may write draft-failed or harness-drafted"),
        (
            {"role": "kernel-bench", "emits": [KernelRejected], "consumes": ["other_thing"]},
            "kernel-rejected answers a request of resia's, and other_thing is none",
        ),
        ({"name": "a b"}, "a worker cannot be called 'a b'"),
        ({"name": "x" * 32}, "at most 31"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(options, sentence):
    with pytest.raises(UsageError) as refused:
        declared(nothing, **options)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cls", [dict, 7, type("Loose", (msgspec.Struct,), {})])
def test_an_event_is_a_frozen_struct(cls):
    with pytest.raises(UsageError, match="event type 'probe_loose' is no fact: declare a class as X"):
        probe.event("loose")(cls)
    assert "probe_loose" not in CUSTOM


# -- serving ---------------------------------------------------------------------------------------------------------


def measured(run: str, cause, number: int) -> list[Draft]:
    done = EvaluationCompleted(f"r{number}", "candidate", number, CANDIDATE, (), 0, {}, {})
    return clerk(run, "task").drafts(cause, 1, [done], f"close {number}")


async def begun(bus, run: str, evaluations: int = 3) -> list[str]:
    """A run with its first event and some evaluations; their ids."""
    await bus.append(run, [clerk(run).genesis(requested())])
    (first,) = await own_workers.log_of(bus, run)
    ids = []
    for number in range(evaluations):
        drafts = measured(run, first, number)
        await bus.append(run, drafts)
        ids.append(drafts[0].id)
    return ids


def served(bus, run: str, found, tmp_path: Path, name: str = "w1"):
    role = role_of(found, DirectoryBlobs(tmp_path / "blobs"))
    return asyncio.create_task(Worker(bus, role, clerk(run, found.role, name)).serve())


async def stopped(bus, run: str, *tasks) -> None:
    await own_workers.end(bus, run)
    await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)


async def broken(task) -> str:
    """The sentence of the WorkerError that ends a worker."""
    with pytest.raises(ExceptionGroup) as group:
        await asyncio.wait_for(task, LIMIT_S)
    failed = group.value
    while isinstance(failed, ExceptionGroup):
        (failed,) = failed.exceptions
    assert isinstance(failed, WorkerError)
    return str(failed)


def plain(fact, run):
    return [Seen(fact.sequence)]


def single(fact, run):
    return Seen(fact.sequence)


def yielding(fact, run):
    yield Seen(fact.sequence)


async def awaited(fact, run):
    await asyncio.sleep(0)
    return [Seen(fact.sequence)]


async def streaming(fact, run):
    yield Seen(fact.sequence)


@pytest.mark.parametrize("function", [plain, single, yielding, awaited, streaming])
async def test_a_function_gives_its_events_as_it_likes(bus, run, tmp_path, function):
    ids = await begun(bus, run)
    task = served(bus, run, declared(function), tmp_path)
    found = await own_workers.customs(bus, 3, run)
    await stopped(bus, run, task)
    handler = f"probe.{function.__name__}.perform.evaluation-completed"
    assert [fact.envelope.cause for fact in found] == ids
    assert [fact.envelope.id for fact in found] == [event_id(run, cause, handler, 0) for cause in ids]
    assert [fact.payload for fact in found] == [{"number": n} for n in (2, 3, 4)]
    assert not [p for p in check(await own_workers.log_of(bus, run)).problems if p.kind in ("id", "run", "unreadable")]


async def test_a_function_is_given_the_run_and_its_blobs(bus, run, tmp_path):
    def look(fact, run):
        assert run.state.sequence >= fact.sequence
        kept = run.blobs.put(b"kept", "text/plain")
        yield Lost(f"{run.name} {run.blobs.get(kept).decode()}")

    await begun(bus, run, 1)
    task = served(bus, run, declared(look, emits=[Lost]), tmp_path)
    (found,) = await own_workers.customs(bus, 1, run)
    await stopped(bus, run, task)
    assert found.payload == {"why": f"{run} kept"}


async def test_processes_of_one_worker_share_the_work_and_a_namesake_in_another_role_does_not(bus, run, tmp_path):
    await begun(bus, run, 8)
    first, second = declared(plain), declared(plain, role="other")
    tasks = [served(bus, run, found, tmp_path, f"w{n}") for n, found in enumerate([first, first, second])]
    found = await own_workers.customs(bus, 16, run)
    await stopped(bus, run, *tasks)
    by_role = [fact.envelope.producer.role for fact in found]
    assert (by_role.count("probe"), by_role.count("other")) == (8, 8)
    assert len({fact.envelope.id for fact in found}) == 16


async def test_work_that_others_have_settled_is_still_shown(bus, run, tmp_path):
    """An observer of requests sees each, whether or not its outcome was there first."""
    await begun(bus, run, 0)
    (first,) = await own_workers.log_of(bus, run)
    asked = clerk(run, "task").drafts(first, 1, [SUBMITTED], "submit")
    await bus.append(run, asked)
    submitted = (await own_workers.log_of(bus, run))[1]
    rejected = KernelRejected(submitted.envelope.id, "verify", "wrong", "no")
    await bus.append(run, clerk(run, "kernel-bench").drafts(submitted, 2, [rejected], "kernel-bench.perform.x"))
    task = served(bus, run, declared(plain, consumes=[KernelSubmitted]), tmp_path)
    (seen,) = await own_workers.customs(bus, 1, run)
    await stopped(bus, run, task)
    assert seen.envelope.cause == submitted.envelope.id


async def test_an_undeclared_event_is_refused_and_nothing_of_its_batch_stands(bus, run, tmp_path, monkeypatch):
    monkeypatch.setattr("resia.runtime.bus.ACK_WAIT_S", 1.0)
    await begun(bus, run, 1)

    def greedy(fact, run):
        yield Seen(1)
        yield Lost("it is not declared")

    before = await own_workers.log_of(bus, run)
    said = await broken(served(bus, run, declared(greedy), tmp_path))
    assert said == (
        f"worker 'greedy' on event 2 (evaluation-completed) of run '{run}' gave a Lost, which it does not declare:"
        " add the class to emits=[...]"
    )
    assert await own_workers.log_of(bus, run) == before
    fixed = served(bus, run, declared(greedy, emits=(Seen, Lost)), tmp_path)  # what it had in hand is handed out again
    found = await own_workers.customs(bus, 2, run)
    await stopped(bus, run, fixed)
    assert [fact.envelope.type for fact in found] == ["probe_seen", "probe_lost"]


def raising(fact, run):
    yield Seen(1)
    raise LookupError("no such thing")


def lying(fact, run):
    return [Seen("a text")]


def shouting(fact, run):
    return [Seen(n) for n in range(BATCH_LIMIT + 1)]


def leaving(fact, run):
    raise SystemExit(3)


def texting(fact, run):
    return "probe_seen"


def hoarding(fact, run):
    return [Lost("x" * MAX_EVENT_BYTES)]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (raising, "failed with LookupError: no such thing"),
        (lying, "gave a Seen that breaks its own schema: Expected `int`, got `str`"),
        (shouting, f"gave {BATCH_LIMIT + 1} events, and one event may lead to {BATCH_LIMIT}"),
        (leaving, "failed with SystemExit: 3"),
        (texting, "failed with TypeError: it gave a str where events belong"),
        (hoarding, "bytes: put what is large into run.blobs"),
    ],
)
async def test_a_worker_that_breaks_leaves_nothing_behind(bus, run, tmp_path, function, sentence):
    await begun(bus, run, 1)
    before = await own_workers.log_of(bus, run)
    assert sentence in await broken(served(bus, run, declared(function, emits=(Seen, Lost)), tmp_path))
    assert await own_workers.log_of(bus, run) == before


async def test_a_worker_of_all_runs_that_breaks_in_one_ends(home, tmp_path):
    await home.bus.create_run("broken")
    await begun(home.bus, "broken", 1)
    role = role_of(declared(raising), DirectoryBlobs(tmp_path))
    assert "failed with LookupError" in await broken(serve_runs(home.bus, role, lambda run: clerk(run, "probe")))


# -- a role of resia -------------------------------------------------------------------------------------------------


async def test_a_role_of_resia_is_served_once_by_whoever_is_first(bus, run, tmp_path):
    await begun(bus, run, 0)
    (first,) = await own_workers.log_of(bus, run)
    await bus.append(run, clerk(run, "task").drafts(first, 1, [SUBMITTED], "submit"))
    submitted = (await own_workers.log_of(bus, run))[1]

    def judge(fact, run):
        return [KernelRejected(fact.envelope.id, "verify", "wrong", run.name)]

    found = declared(judge, consumes=[KernelSubmitted], emits=[KernelRejected], role="kernel-bench")
    tasks = [served(bus, run, found, tmp_path, f"w{n}") for n in range(2)]
    async for fact in bus.read(run, follow=True):
        if fact.envelope.type == "kernel-rejected":
            break
    await stopped(bus, run, *tasks)
    log = await own_workers.log_of(bus, run)
    assert [f.envelope.type for f in log].count("kernel-rejected") == 1
    assert fact.envelope.id == event_id(run, submitted.envelope.id, "outcome", 0)
    report = check(log)
    assert not [p for p in report.problems if p.sequence == fact.sequence]


# -- namespaces ------------------------------------------------------------------------------------------------------


def other_seen(**options):
    """Another package's idea of probe_seen."""
    return msgspec.defstruct("Seen", [("number", str)], frozen=True, **options)


async def test_a_namespace_keeps_what_its_first_package_meant(home, monkeypatch):
    await register(home.bus, "first 1.0", ["probe_seen"])
    await register(home.bus, "first 1.1", ["probe_seen", "probe_lost"])
    held, _ = await home.bus.schemas("probe")
    document = msgspec.json.decode(held)
    assert document["package"] == "first 1.0"
    assert set(document["events"]) == {"probe_seen", "probe_lost"}
    monkeypatch.setitem(CUSTOM, "probe_seen", CUSTOM["probe_seen"]._replace(cls=other_seen()))
    with pytest.raises(UsageError) as refused:
        await register(home.bus, "second 2.0", ["probe_seen"])
    assert str(refused.value) == (
        "namespace 'probe' is first 1.0's, and its 'probe_seen' version 1 is not what second 2.0 declares: take another"
        " namespace, or raise the event's version"
    )
    assert (await home.bus.schemas("probe"))[0] == held
    monkeypatch.setitem(CUSTOM, "probe_seen", CUSTOM["probe_seen"]._replace(version=2))
    await register(home.bus, "first 2.0", ["probe_seen"])
    assert set(msgspec.json.decode((await home.bus.schemas("probe"))[0])["events"]["probe_seen"]) == {"1", "2"}


async def test_prose_is_no_part_of_what_an_event_means(home, monkeypatch):
    await register(home.bus, "first", ["probe_seen"])
    same = msgspec.defstruct("Seen", [("number", int)], frozen=True, namespace={"__doc__": "Said otherwise."})
    monkeypatch.setitem(CUSTOM, "probe_seen", CUSTOM["probe_seen"]._replace(cls=same))
    await register(home.bus, "second", ["probe_seen"])


async def test_workers_that_start_at_once_register_all_that_they_declare(home):
    await asyncio.gather(
        *[register(home.bus, f"p{n}", [kind]) for n in range(4) for kind in ("probe_seen", "probe_lost")]
    )
    assert set(msgspec.json.decode((await home.bus.schemas("probe"))[0])["events"]) == {"probe_seen", "probe_lost"}


async def test_a_login_of_a_worker_is_enough_to_register_and_serve(home, tmp_path):
    await home.bus.create_run("r")
    await begun(home.bus, "r", 2)
    found = declared(plain)
    access, grant = admit(home.folder, found.role, found.name, found.writes)
    own = await connect(access.url, grant.login, grant.password)
    await register(own, "mine", found.writes)
    role = role_of(found, DirectoryBlobs(tmp_path))
    everything = asyncio.create_task(serve_runs(own, role, lambda run: clerk(run, found.role)))
    assert len(await own_workers.customs(home.bus, 2, "r")) == 2
    await cancelled([everything])
    await own.close()
    assert all(isinstance(fact, Custom) for fact in await own_workers.customs(home.bus, 2, "r"))


def test_an_unknown_event_class_offers_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean .*Evaluation"):
        declared(nothing, consumes=[type("EvaluationComplete", (msgspec.Struct,), {})])

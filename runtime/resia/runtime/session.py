"""One run from request to seal: server, registry, first event, workers, and what a person watches.

`launch` is all that `resia run`, `resia demo` and tests need. It holds no rule: the workers decide, the log says.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from resia.domains.contract import contract
from resia.domains.files import recorded_name
from resia.events import BASELINES, Fact, Logged, RunRequested, RunSettings
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.errors import BusError, UnknownName, UsageError
from resia.events.settings import Split
from resia.replay.ledger import price
from resia.replay.state import RunState

from .bus import BATCH_LIMIT, Bus, reach
from .config import ProcessConfig
from .endpoint import check_endpoints, endpoint_digest
from .object_shelf import create_bucket
from .resources import KERNEL_DOMAINS, domain_for, model_folder, package_version
from .server import STOPS_BYTES, Access
from .serving_engine import check_engine, check_resumed, trained_rank
from .skew import fits_series
from .stopwatch import forget_seconds, guard_seconds
from .store import Store, require_run, serving
from .supervisor import Died, Supervisor
from .targets import addresses, write_targets
from .tenancy import Serving
from .unserved import Quiet, tell_waiting
from .watching import Watching, watching
from .worker import Clerk, Follower, cancelled

DEFAULT_WORKERS = {"meta": 1, "task": 1, "feedback": 1, "trainer": 1, "kernel-bench": 0}
OPTIONAL = frozenset({"trainer", "kernel-bench"})  # may be attached from elsewhere: on several ranks, with a GPU
SLOT_BYTES = 100  # of an evaluation's event a rollout takes, beside its item's name
DISK_CHECK_S = 1.0
SERVER_CHECK_S = 0.5
OBSERVED_S = 3.0  # for the last spans, which a process sends when it has read what it wrote
WORKER = "cli"  # as which a session writes
SPLITS: tuple[Split, ...] = ("search", "validation", "test")


def _ignore(*_: object) -> None:
    """Watch nothing."""


class Watch(NamedTuple):
    """What a session tells whoever watches; every field may do nothing."""

    fact: Callable[[RunState, Logged], None] = _ignore
    live: Callable[[dict[str, Any]], None] = _ignore
    died: Callable[[Died], None] = _ignore
    started: Callable[[Supervisor], None] = _ignore
    waiting: Callable[[str], None] = _ignore  # what the run seems to wait for, in a sentence


class Session(NamedTuple):
    """What to run and where. `settings` None: continue the run that is there, or begin it with `request`."""

    run: str
    settings: RunSettings | None
    store: Store
    workers: Mapping[str, int] = DEFAULT_WORKERS
    cache: Path | None = None
    port: int | None = None
    unsafe_local: bool = False
    request: RunRequested | None = None  # the first event, where the caller has made it: a fork's
    metrics: str | None = None  # [HOST:]PORT of the session's own; its workers take the ports after it


def parse_workers(specs: list[str]) -> dict[str, int]:
    """`task=2` to processes a role, `none` to none at all: they are elsewhere. UsageError names what is off."""
    chosen = dict(DEFAULT_WORKERS)
    if specs == ["none"]:
        return dict.fromkeys(chosen, 0)
    for spec in specs:
        name, mark, count = spec.partition("=")
        if name not in chosen:
            raise UnknownName("role", name, chosen)
        least = 0 if name in OPTIONAL else 1
        if not mark or not count.isdigit() or int(count) < least:
            raise UsageError(f"--workers takes role=number of at least {least}, such as task=2, not '{spec}'")
        chosen[name] = int(count)
    return chosen


async def launch(session: Session, watch: Watch) -> RunState:
    """Start or continue the run and see it to its end; the state it ended in.

    Everything but the embedded server's own log survives an interruption at any point: launch again to continue.
    """
    settings = session.settings
    request = session.request if settings is None else first_event(settings, session.cache)
    session.store.make()
    with watching("user", WORKER, session.metrics) as watched:
        return await _launched(session, request, watch, watched)


async def _launched(session: Session, request: RunRequested | None, watch: Watch, watched: Watching) -> RunState:
    async with serving(session.store, port=session.port, share=False) as log:
        bus = watched.bus(await reach(log.access, "admin"))
        try:
            await bus.create_registry()
            await create_bucket(bus, log.access)
            settings = await _begin(bus, session, request)
            state = await _attend(bus, log, session, settings, watch, OBSERVED_S if watched.observers else 0.0)
            await bus.set_status(session.run, state.status)
            await bus.seal(session.run)
            return state
        finally:
            await bus.close()


def first_event(settings: RunSettings, cache: Path | None) -> RunRequested:
    """The first event of a run: checks domain, data, model and algorithm before anything is written."""
    from resia.agents.perturbing import offered
    from resia.trainers.objectives import FEASIBLE

    if settings.algorithm is not None and settings.algorithm not in FEASIBLE:
        raise UnknownName("algorithm (of those built)", settings.algorithm, FEASIBLE)
    if settings.algorithm is not None and settings.loop.mode == "H":
        raise UsageError(f"mode H freezes the weights: leave algorithm {settings.algorithm} out, or take mode W or W+H")
    if settings.algorithm is not None and settings.loop.mode in BASELINES:
        raise UsageError(f"mode {settings.loop.mode} trains nothing: leave algorithm {settings.algorithm} out")
    check_endpoints(settings)
    _check_prices(settings)
    remote = settings.engine.kind == "openai"
    weights = endpoint_digest(settings) if remote else _weights(settings, cache)
    settings = msgspec.structs.replace(settings, domain=recorded_name(settings.domain))
    domain = domain_for(settings, cache)
    items = {split: tuple(item.id for item in domain.items(split)) for split in SPLITS}
    if empty := [split for split in SPLITS if not items[split]]:
        raise UsageError(f"domain '{settings.domain}' has no {empty[0]} items: give each split at least one")
    if unsound := [finding for finding in contract(domain) if finding.passed is False]:
        raise UsageError(
            f"domain '{settings.domain}' is refused: {unsound[0].detail} (resia task check tells all that is wrong)"
        )
    free = [parameter.name for parameter in domain.spec.parameters if not parameter.choices]
    if settings.loop.mode == "random" and free:
        raise UsageError(
            f"mode random draws answers from lists of choices, and the argument '{free[0]}' of domain"
            f" '{settings.domain}' has none: take mode best-of-n, or another form of the domain"
        )
    _check_size(settings, items)
    if len(items["validation"]) < settings.gate.min_items:
        raise UsageError(
            f"domain '{settings.domain}' has {len(items['validation'])} validation items and the gate needs"
            f" {settings.gate.min_items}: add items, or set gate.min_items"
        )
    return RunRequested(
        settings,
        settings.digest(),
        domain.digest,
        weights,
        items,
        FEASIBLE,
        domain.spec.objective,
        domain.spec.ordinal,
        domain.spec.binary,
        perturbations=offered(domain),
        verifier=domain.spec.verifier,
    )


def _weights(settings: RunSettings, cache: Path | None) -> str:
    """Digest of the model's folder, which the servers that are to answer have to serve."""
    from .assets import model_digest

    folder = model_folder(settings.engine, cache)
    check_engine(settings.engine, folder, cache, trained_rank(settings))
    return model_digest(folder)


def _check_prices(settings: RunSettings) -> None:
    """A budget of money that nothing is charged to would never be spent."""
    budget, model = settings.loop.money_budget, settings.engine.model
    if budget is None or any(msgspec.structs.astuple(price(settings, model))):
        return
    raise UsageError(
        f"loop.money_budget is {budget:g} {settings.price.currency}, and price.models has no price of model '{model}':"
        " set one, or leave the budget out"
    )


def _check_size(settings: RunSettings, items: Mapping[Split, tuple[str, ...]]) -> None:
    """One evaluation must fit an event, and its shards one batch."""
    from resia.agents.selection import MAX_GROUP  # numpy comes with it, and readers of this module need none

    sampled = len(items["search"]) * settings.sampling.group_size
    greedy = max(len(items["search"]) + len(items["validation"]), len(items["test"]))
    longest = max(len(item.encode()) for names in items.values() for item in names)
    most = MAX_EVENT_BYTES * 9 // 10 // (longest + SLOT_BYTES)
    if sampled + greedy > most:
        raise UsageError(
            f"an evaluation would ask for {sampled + greedy} rollouts and one event holds {most}: take fewer"
            " items, or a smaller sampling.group_size"
        )
    fresh = settings.training.groups * max(settings.training.group_size, MAX_GROUP)  # the rules may raise it so far
    if fresh + -(-fresh // settings.sampling.shard_size) > BATCH_LIMIT:
        raise UsageError(
            f"a training round may ask for {fresh} rollouts and one batch holds {BATCH_LIMIT} events: lower"
            " training.groups or training.group_size"
        )
    shards = -(-sampled // settings.sampling.shard_size) + -(-greedy // settings.sampling.shard_size)
    if shards > BATCH_LIMIT:
        raise UsageError(
            f"an evaluation would be cut into {shards} shards and one batch holds {BATCH_LIMIT}: raise"
            f" sampling.shard_size from {settings.sampling.shard_size}"
        )


async def _begin(bus: Bus, session: Session, request: RunRequested | None) -> RunSettings:
    """Write the first event, or find the run that is to go on; the settings it runs with."""
    witness = session.store.witness(session.run)
    if request is not None:
        await bus.create_run(session.run)
        witness.forget()
        forget_seconds(session.store, session.run)
        clerk = Clerk(session.run, "user", WORKER, package_version(), time.time)
        await bus.append(session.run, [clerk.genesis(request)])
        return request.settings
    await require_run(bus, session.run)
    await witness.check(bus, session.run)
    async for fact in bus.read(session.run):
        fits_series(fact, session.run, package_version())
        if isinstance(fact, Fact) and isinstance(fact.event, RunRequested):
            check_endpoints(fact.event.settings)
            check_resumed(fact.event.settings, session.cache)
            return fact.event.settings
    raise UsageError(f"run '{session.run}' has no first event, so it cannot go on: start it again under another name")


async def _attend(
    bus: Bus, log: Serving, session: Session, settings: RunSettings, watch: Watch, patience_s: float
) -> RunState:
    """Workers, fold and progress until the run has ended; then the workers have `patience_s` to end by themselves."""
    follower = Follower(bus, session.run)
    supervisor = Supervisor(session.store.workers / session.run, settings.engine.threads, watch.died)
    ended, witness, quiet = asyncio.Event(), session.store.witness(session.run), Quiet()

    def on_fact(state: RunState, fact: Logged) -> None:
        quiet.heard()
        witness.saw(fact)
        watch.fact(state, fact)
        if state.ending is not None:
            ended.set()

    def on_live(data: dict[str, Any]) -> None:
        quiet.heard()
        watch.live(data)

    elsewhere = [role for role, count in _needed(session.workers, settings).items() if not count]
    helpers = [
        asyncio.create_task(follower.follow(on_fact)),
        asyncio.create_task(_relay(bus, session.run, on_live)),
        asyncio.create_task(tell_waiting(bus, session.run, elsewhere, quiet, watch.waiting)),
        asyncio.create_task(_guard_disk(session)),
        asyncio.create_task(guard_seconds(bus, session.run, session.store, settings.loop.seconds_budget, follower)),
        asyncio.create_task(_guard_server(log, watch, lambda: witness.check(bus, session.run))),
        *(asyncio.create_task(supervisor.keep(c)) for c in _configs(log.access, session, settings.domain)),
    ]
    watch.started(supervisor)
    end = asyncio.create_task(ended.wait())
    try:
        await _first(end, helpers)
        if patience_s:
            await supervisor.ended(patience_s)
    finally:
        await supervisor.stop()
        await cancelled((end, *helpers))
        witness.close()
    return follower.state


async def _first(end: asyncio.Task[Any], helpers: list[asyncio.Task[None]]) -> None:
    """Wait for the end; raise what a helper raises before it. A helper that ends well is not waited for."""
    waiting: set[asyncio.Task[Any]] = {end, *helpers}
    while not end.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {end}:
            task.result()


async def _relay(bus: Bus, run: str, live: Callable[[dict[str, Any]], None]) -> None:
    with suppress(asyncio.CancelledError):
        async for data in bus.live(run):
            live(data)


async def _guard_disk(session: Session) -> None:
    """Stop while there is room to stop in order: a log on a full disk stalls without a word."""
    while True:
        free = shutil.disk_usage(session.store.folder).free
        if free < STOPS_BYTES:
            raise BusError(
                f"the disk of {session.store.folder} has {free >> 20} MB left and resia stops at"
                f" {STOPS_BYTES >> 20}: free some, then go on with --resume {session.run}"
            )
        await asyncio.sleep(DISK_CHECK_S)


async def _guard_server(log: Serving, watch: Watch, check: Callable[[], Awaitable[None]]) -> None:
    """Bring an embedded server that died back on its port; every process reconnects and asks again.

    `check` then finds out whether its log came back whole.
    """
    while log.server is not None:
        pid, code = log.server.pid or 0, log.server.revive()
        if code is not None:
            watch.died(Died("nats-server", code, pid))
            await check()
        await asyncio.sleep(SERVER_CHECK_S)


def _processes(workers: Mapping[str, int], domain: str) -> dict[str, int]:
    """Processes a role: a run of a domain with kernels has a bench, where nothing else was asked for."""
    if not any(workers.values()):
        return dict(workers)
    return {**workers, "kernel-bench": workers.get("kernel-bench", 0) or int(domain in KERNEL_DOMAINS)}


def _needed(workers: Mapping[str, int], settings: RunSettings) -> dict[str, int]:
    """Processes of this session a role, of the roles without which the run cannot go on."""
    trains, benched = trained_rank(settings) > 0, settings.domain in KERNEL_DOMAINS
    spared = {"trainer": not trains, "kernel-bench": not benched}
    return {role: count for role, count in _processes(workers, settings.domain).items() if not spared.get(role)}


def _configs(access: Access, session: Session, domain: str) -> list[ProcessConfig]:
    processes = _processes(session.workers, domain)
    for role in (role for role, count in processes.items() if count):
        access.require(role)
    names = [(role, f"{role}-{number}") for role, count in processes.items() for number in range(1, count + 1)]
    places = addresses(session.metrics, [WORKER, *(name for _, name in names)])
    write_targets(session.store.workers / session.run, places)
    return [
        ProcessConfig(
            url=access.url,
            user=access.login(role)[0],
            password=access.login(role)[1],
            ca=access.ca,
            role=role,
            worker=name,
            blobs=session.store.folder / "blobs",
            shared=access.blobs,
            cache=session.cache,
            run=session.run,
            unsafe_local=session.unsafe_local,
            metrics=places.get(name),
        )
        for role, name in names
    ]

"""Forks prepared: from `RUN@K` and settings to the first event of a child, checked before anything is written.

What a child inherits is pure and in replay.fork; running it is a session like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from resia.events import ALGORITHMS, BASELINES, Algorithm, Fact, Parent, RunRequested, RunSettings
from resia.events.errors import BlobError, Tampered, UsageError
from resia.events.settings import Mode
from resia.events.subjects import check_run
from resia.replay.diff import candidate_evaluations
from resia.replay.explain import parse_run_ref
from resia.replay.fork import before_decision
from resia.replay.state import RunState
from resia.replay.verify import check

from .bus import Bus
from .config import load_settings
from .reading import Log, read_log
from .session import first_event
from .store import Store, opened, require_whole

SHORT = {"mode": "loop.mode"}  # settings that --set takes by their last name, as `resia run` has options for them
# What a mode has no use for: a person who sets it expects something that will not happen.
UNUSED: dict[Mode, tuple[str, ...]] = {
    "H": ("algorithm", "training", "loop.patience_w"),
    "W": ("proposer", "llm", "loop.patience_h"),
}
FREEZES = {"H": "freezes the weights", "W": "freezes the harness"}
NAME_CHARS = 64


class Child(NamedTuple):
    """A run to be made, or one that is there already as asked (`there`, and `ended` when nothing is left to do)."""

    run: str
    request: RunRequested
    there: bool = False
    ended: bool = False


class Moment(NamedTuple):
    """Where a fork begins: before a decision of `log` was taken, with the state that it inherits."""

    log: Log
    parent: Parent
    state: RunState

    @property
    def request(self) -> RunRequested:
        if self.state.request is None:
            raise UsageError(f"run '{self.log.run}' has no first event, so nothing can be forked from it")
        return self.state.request


class Change(NamedTuple):
    """One `section.key=value` of a person, by its whole name."""

    name: str
    value: str

    @property
    def text(self) -> str:
        return f"{self.name}={self.value}"

    @property
    def slug(self) -> str:
        """As part of a run's name: `dpo` for algorithm=dpo, `patience_w-3` for loop.patience_w=3."""
        last = self.name.rpartition(".")[2]
        text = self.value if last in ("algorithm", "mode") else f"{last}-{self.value}"
        return re.sub(r"[^a-z0-9_-]", "", text.lower())


async def prepare(store: Store, ref: str, sets: Sequence[str], cache: Path | None, name: str | None) -> Child:
    """The child of `ref` (RUN@K) under `sets`; UsageError or UnknownName for what cannot be forked so."""
    async with opened(store) as bus:
        moment = await _moment(bus, store, ref)
        changes = [_change(text) for text in sets]
        request = _request(moment, _settings(moment, changes), cache)
        names = {entry.run for entry in await bus.runs()}
        run = check_run(name) if name else _free_name(_name(moment, changes), names)
        if run in names:
            raise UsageError(f"run '{run}' exists already: take another name, or continue it with --resume {run}")
        return Child(run, request)


async def prepare_all(store: Store, ref: str, sets: Sequence[str], cache: Path | None, name: str | None) -> list[Child]:
    """A child for each algorithm that is built, whose first decision is to train with it.

    Each takes that one decision in mode W and sees its consequence, unless `sets` say otherwise. A child that an
    earlier call made with the same settings is kept, so the whole can be asked for again after an interruption.
    """
    from resia.trainers.objectives import FEASIBLE

    async with opened(store) as bus:
        moment = await _moment(bus, store, ref)
        changes = [_change(text) for text in sets]
        first = _request(moment, _settings(moment, _one_decision(moment, changes)), cache)
        names = {entry.run for entry in await bus.runs()}
        stem = check_run(name) if name else _name(moment, changes)
        children = []
        for algorithm in FEASIBLE:
            settings = msgspec.structs.replace(first.settings, algorithm=algorithm)
            request = msgspec.structs.replace(first, settings=settings, settings_digest=settings.digest())
            children.append(await _kept_or_new(bus, _ending(stem, algorithm), request, names))
        return children


def not_built() -> list[Algorithm]:
    """Algorithms of the paper that this package has not built."""
    from resia.trainers.objectives import FEASIBLE

    return [name for name in ALGORITHMS if name not in FEASIBLE]


async def _moment(bus: Bus, store: Store, ref: str) -> Moment:
    run, iteration = parse_run_ref(ref)
    if iteration is None:
        raise UsageError(f"fork needs an iteration: write RUN@K with K from 1, such as '{run}@1'")
    await require_whole(store, bus, run)
    log = await read_log(bus, run)
    number = log.decision_event(iteration)
    _require_intact(log, number)
    parent = before_decision(log.facts, number)
    moment = Moment(log, parent, log.at(parent.sequence))
    _require_files(store, moment)
    return moment


def _require_intact(log: Log, number: int) -> None:
    """Nothing is built on a history that was changed; a message that is no event was skipped and changed nothing."""
    for why in log.ancestry.changed:
        raise Tampered(1, why)
    for problem in check(log.facts[:number], {}, log.origin).problems:
        if problem.kind not in ("unreadable", "quarantine"):
            raise Tampered(problem.sequence, f"{problem.why}; run '{log.run}' cannot be forked after it")


def _require_files(store: Store, moment: Moment) -> None:
    """The candidates that a child starts from must be in the store that it will run over."""
    for found in candidate_evaluations(moment.state)[-1:]:
        candidate = found.request.candidate
        try:
            for blob in filter(None, (candidate.harness, candidate.adapter)):
                store.blobs().get(blob)
        except BlobError as cause:
            raise UsageError(
                f"the files of run '{moment.log.run}' are not in {store.folder} ({cause}): name its store with --store"
            ) from None


def _change(text: str) -> Change:
    name, mark, value = text.partition("=")
    name = name.strip()
    if not mark or not name:
        raise UsageError(f"--set takes name=value such as mode=H, not '{text}'")
    return Change(SHORT.get(name, name), value.strip())


def _settings(moment: Moment, changes: Sequence[Change]) -> RunSettings:
    """The parent's settings with the changes; UsageError for one that the mode has no use for."""
    settings = load_settings(None, [change.text for change in changes], moment.request.settings)
    mode = settings.loop.mode
    if mode in BASELINES:
        raise UsageError(f"mode {mode} searches from generation 0: begin a run of its own with resia run --mode {mode}")
    for change in changes:
        if any(change.name == name or change.name.startswith(f"{name}.") for name in UNUSED.get(mode, ())):
            raise UsageError(f"mode {mode} {FREEZES[mode]}: leave {change.name} out, or set another mode")
    if mode == "W":
        settings = msgspec.structs.replace(settings, proposer="operators")  # the parent's endpoint is not asked
    if mode == "H":
        settings = msgspec.structs.replace(settings, algorithm=None)  # the parent may have asked for one
    return settings


def _one_decision(moment: Moment, changes: list[Change]) -> list[Change]:
    """`changes` and what makes the first decision the counterfactual one, and the only one, where they do not say."""
    named = {change.name: change.value for change in changes}
    if "algorithm" in named:
        raise UsageError(f"--all-algorithms takes each algorithm in turn: leave algorithm={named['algorithm']} out")
    if named.get("loop.mode", "W").strip("'\"") == "H":
        raise UsageError("mode H freezes the weights: --all-algorithms needs mode W or W+H")
    if "loop.mode" not in named:
        changes = [*changes, Change("loop.mode", "W")]
    if "loop.max_iterations" not in named:
        changes = [*changes, Change("loop.max_iterations", str(moment.parent.iteration))]
    return changes


def _request(moment: Moment, settings: RunSettings, cache: Path | None) -> RunRequested:
    """The child's first event; UsageError when the history would not be one of its own data and model."""
    was, run = moment.request, moment.log.run
    if settings.engine.dtype != was.settings.engine.dtype:
        raise UsageError(_fixed("engine.dtype", run))
    if settings.domain != was.settings.domain:
        raise UsageError(_fixed("domain", run))
    request = first_event(settings, cache)
    if request.domain_digest != was.domain_digest or request.items != was.items:
        raise UsageError(
            _fixed("domain_options", run)
            if settings.domain_options != was.settings.domain_options
            else f"the data of domain '{settings.domain}' are not what run '{run}' began with: restore them to fork it"
        )
    if "openai" in (settings.engine.kind, was.settings.engine.kind) and request.model_digest != was.model_digest:
        raise UsageError(_fixed("engine.kind, engine.model or endpoint.base_url", run))
    if request.model_digest != was.model_digest:
        raise UsageError(
            _fixed("engine.model", run)
            if settings.engine.model != was.settings.engine.model
            else f"model '{settings.engine.model}' is not what run '{run}' began with: restore it to fork it"
        )
    return msgspec.structs.replace(request, parent=moment.parent, policy=was.policy)


def _fixed(name: str, run: str) -> str:
    return f"{name} cannot change in a fork, because the history of run '{run}' was made with it: start a new run"


def _name(moment: Moment, changes: Sequence[Change]) -> str:
    """`<run>-at-<K>` and what changed."""
    changed = "-".join(filter(None, (change.slug for change in changes)))
    return "-".join(filter(None, (moment.log.run, "at", str(moment.parent.iteration), changed)))[:NAME_CHARS]


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or with the first number from 2 that makes it one of its own."""
    found, number = name, 2
    while found in taken:
        found, number = _ending(name, str(number)), number + 1
    return found


def _ending(stem: str, tail: str) -> str:
    """`stem-tail`, the stem cut where a run's name would be too long."""
    return f"{stem[: NAME_CHARS - len(tail) - 1]}-{tail}"


async def _kept_or_new(bus: Bus, name: str, request: RunRequested, taken: set[str]) -> Child:
    if name in taken:
        log = await read_log(bus, name)
        first = log.facts[0] if log.facts else None
        if isinstance(first, Fact) and first.event == request:
            return Child(name, request, there=True, ended=log.at().ending is not None)
    return Child(_free_name(name, taken), request)

"""Arms at an equal budget: one run a mode and seed, each from nothing in one store, then side by side.

A run's name follows from its settings, so that the same comparison asked for again finds what has ended and goes on
with what has not. Each arm's champion is compared with the reference arm's, seed by seed, on the same items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from resia.agents.crossed import crossed
from resia.agents.taskwork import item_means
from resia.events import MODES, Fact, HarnessEdited, Mode, RunRequested, RunSettings, Split
from resia.events.errors import UnknownName, UsageError
from resia.events.ids import seed_for
from resia.events.subjects import check_run
from resia.replay.ledger import money
from resia.replay.state import Evaluation, RunState

from .bus import Bus
from .forking import Child
from .reading import present_state, read_log
from .session import first_event
from .store import Store, opened

TAIL = 0.025  # on either side of a 95% interval
STEM_CHARS = 8  # of the settings' digest, in a run's name


class Cell(NamedTuple):
    """One run of a comparison."""

    arm: Mode
    seed: int
    run: str


class Arms(NamedTuple):
    """What is compared: `cells` seed by seed, so that an early end leaves whole seeds; `base` has neither."""

    arms: tuple[Mode, ...]
    seeds: tuple[int, ...]
    reference: Mode
    base: RunSettings
    cells: tuple[Cell, ...]


class Effect(msgspec.Struct, frozen=True):
    """Mean of arm minus reference on one split with its 95% interval, over `seeds` x `items` pairs."""

    mean: float
    low: float
    high: float
    seeds: int
    items: int


class ArmLine(msgspec.Struct, frozen=True):
    """One arm. Scores are means over its runs of the champion's mean greedy reward in [0, 1]; `baseline_test` is
    generation 0's. `tokens` are the mean of a run before its sealed test, `all_tokens` and `money` all that the arm
    spent. `coverage` is the smallest share of a champion's validation and test rollouts that were scored. `notes` says
    what failed, and which answer a baseline chose."""

    arm: Mode
    runs: tuple[str, ...]
    failed: int
    validation: float | None
    test: float | None
    baseline_test: float | None
    validation_effect: Effect | None
    test_effect: Effect | None
    tokens: int
    token_budget: int
    all_tokens: int
    money: float
    currency: str
    coverage: float | None
    notes: tuple[str, ...]


def asked(text: str, seeds: int, reference: str | None, base: RunSettings, stem: str | None) -> Arms:
    """`text` is modes with commas between; the first is the reference unless another is named. UsageError or
    UnknownName for what cannot be compared."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in MODES]:
        raise UnknownName("arm", unknown[0], MODES)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"arm {twice[0]} is in --arms twice: name each once")
    if len(names) < 2:
        raise UsageError(f"--arms has {len(names)} arm and a comparison needs two: such as --arms H,random")
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}: give the number of runs an arm, from 1")
    arms = tuple(mode for name in names for mode in MODES if mode == name)
    if reference is not None and reference not in names:
        raise UnknownName("reference (one of --arms)", reference, names)
    chosen = next((mode for mode in arms if mode == reference), arms[0])
    numbers = tuple(range(base.seed, base.seed + seeds))
    stem = check_run(stem) if stem else f"arms-{settings_of(base, 'W+H', 0).digest()[:STEM_CHARS]}"
    cells = tuple(Cell(arm, seed, check_run(f"{stem}-{_slug(arm)}-{seed}")) for seed in numbers for arm in arms)
    return Arms(arms, numbers, chosen, base, cells)


def _slug(arm: Mode) -> str:
    return arm.replace("+", "").lower()


def settings_of(base: RunSettings, arm: Mode, seed: int) -> RunSettings:
    """The settings of one run: an arm that trains nothing has no use for an algorithm."""
    loop = msgspec.structs.replace(base.loop, mode=arm)
    algorithm = base.algorithm if arm in ("W", "W+H") else None
    return msgspec.structs.replace(base, loop=loop, seed=seed, algorithm=algorithm)


async def prepare(store: Store, arms: Arms, cache: Path | None) -> list[Child]:
    """A run for each cell, or the one that is there; UsageError where a run of that name is another."""
    made = first_event(settings_of(arms.base, arms.arms[0], arms.seeds[0]), cache)
    requests = {cell.run: _request(made, settings_of(arms.base, cell.arm, cell.seed)) for cell in arms.cells}
    if store.nats is None and not store.folder.is_dir():
        return [Child(run, request) for run, request in requests.items()]
    async with opened(store) as bus:
        there = {entry.run for entry in await bus.runs()}
        return [
            await _kept(bus, run, request) if run in there else Child(run, request) for run, request in requests.items()
        ]


def _request(made: RunRequested, settings: RunSettings) -> RunRequested:
    """Items and digests do not depend on mode or seed."""
    return msgspec.structs.replace(made, settings=settings, settings_digest=settings.digest())


async def _kept(bus: Bus, run: str, request: RunRequested) -> Child:
    log = await read_log(bus, run)
    first = log.facts[0] if log.facts else None
    if not isinstance(first, Fact) or first.event != request:
        raise UsageError(
            f"run '{run}' is there with other settings, data or model: name this comparison with --run, or remove it"
        )
    return Child(run, request, there=True, ended=log.at().ending is not None)


async def states(store: Store, arms: Arms) -> dict[str, RunState]:
    """The state of each run, by name."""
    async with opened(store) as bus:
        return {cell.run: await present_state(store, bus, cell.run) for cell in arms.cells}


def lines(arms: Arms, found: Mapping[str, RunState]) -> list[ArmLine]:
    """One line an arm, in the order asked for."""
    by_arm = {arm: {c.seed: found[c.run] for c in arms.cells if c.arm == arm} for arm in arms.arms}
    runs = {arm: tuple(c.run for c in arms.cells if c.arm == arm) for arm in arms.arms}
    return [_line(arms, arm, runs[arm], by_arm[arm], by_arm[arms.reference]) for arm in arms.arms]


def _line(
    arms: Arms, arm: Mode, runs: tuple[str, ...], own: Mapping[int, RunState], reference: Mapping[int, RunState]
) -> ArmLine:
    settings = arms.base
    done = [state for state in own.values() if state.status == "completed"]
    compared = arm != arms.reference
    spent = [_before_the_test(state) for state in own.values()]
    return ArmLine(
        arm=arm,
        runs=runs,
        failed=len(own) - len(done),
        validation=_mean([_score(state, "validation") for state in done]),
        test=_mean([_score(state, "test") for state in done]),
        baseline_test=_mean([getattr(state.ending, "baseline_test", None) for state in done]),
        validation_effect=_effect(own, reference, "validation", settings.seed) if compared else None,
        test_effect=_effect(own, reference, "test", settings.seed) if compared else None,
        tokens=round(sum(spent) / len(spent)),
        token_budget=settings.loop.token_budget,
        all_tokens=sum(state.ledger.tokens for state in own.values()),
        money=sum(money(state.ledger, settings) for state in own.values()),
        currency=settings.price.currency,
        coverage=min((share for state in done if (share := _coverage(state)) is not None), default=None),
        notes=tuple(note for seed, state in own.items() if (note := _note(seed, state))),
    )


def _before_the_test(state: RunState) -> int:
    """Tokens until the loop stopped."""
    stopped = bool(state.decisions) and state.decisions[-1].decision.action == "stop"
    last = state.cycles.get(state.iteration)
    return state.ledger.tokens - (last.tokens if stopped and last else 0)


def _champion(state: RunState, split: Split) -> Evaluation | None:
    """The evaluation of the champion's candidate that has `split` in it."""
    if split == "test":
        return next((e for e in state.evaluations.values() if e.request.purpose == "test"), None)
    return state.evaluations.get(state.champion.evaluation) if state.champion else None


def _score(state: RunState, split: Split) -> float | None:
    found = _champion(state, split)
    score = found.completed.scores.get(split) if found and found.completed else None
    return score.mean if score else None


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _coverage(state: RunState) -> float | None:
    splits: tuple[Split, ...] = ("validation", "test")
    shares = []
    for split in splits:
        found = _champion(state, split)
        if found is None or found.completed is None:
            return None
        score = found.completed.scores.get(split)
        shares.append(score.coverage if score else 0.0)
    return min(shares)


def _effect(own: Mapping[int, RunState], reference: Mapping[int, RunState], split: Split, seed: int) -> Effect | None:
    """Paired by seed and item; an item that infrastructure lost on any side is left out."""
    pairs = []
    for number, state in own.items():
        sides = [_champion(side, split) for side in (state, reference[number]) if side.status == "completed"]
        if len(sides) == 2 and sides[0] is not None and sides[1] is not None:
            pairs.append((item_means(sides[0], split), item_means(sides[1], split)))
    if not pairs:
        return None
    shared = sorted(set.intersection(*(old.keys() & new.keys() for new, old in pairs)))
    if not shared:
        return None
    values = np.array([[new[item] - old[item] for item in shared] for new, old in pairs], dtype=np.float64)
    interval = crossed(values, TAIL, seed_for(seed, "compare", split))
    return Effect(float(values.mean()), interval.low, interval.high, len(pairs), len(shared))


def _note(seed: int, state: RunState) -> str:
    if state.status != "completed":
        why = getattr(state.ending, "error", "it has not ended")
        return f"seed {seed}: {why}"
    chosen = [
        node.rationale
        for node in state.harnesses.values()
        if isinstance(node, HarnessEdited) and node.component == "answer_extraction" and _searched(state)
    ]
    return f"seed {seed}: {chosen[0]}" if chosen else ""


def _searched(state: RunState) -> bool:
    return state.request is not None and state.request.settings.loop.mode in ("random", "best-of-n")

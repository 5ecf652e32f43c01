"""Runs side by side: what each decided since they parted, and what came of it on the same validation items.

Runs of one lineage are compared from their latest common moment, others each from its own beginning: a fork from
where it was forked, a run begun from nothing from its baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from rich.table import Table
from rich.text import Text

from resia.agents.gate import bca
from resia.agents.taskwork import item_means
from resia.events import Action, Algorithm, RunFailed
from resia.events.errors import UsageError
from resia.events.ids import seed_for
from resia.replay.diff import candidate_evaluations
from resia.replay.fork import owner_of, parted_at
from resia.replay.state import DecisionAt, Evaluation, Outcome, RunState, Status, Trial
from resia.replay.wording import score_text

from .reading import Log, read_log
from .store import Store, opened, require_whole
from .views import Shown

TAIL = 0.025  # on either side of a 95% interval


class Taken(msgspec.Struct, frozen=True):
    """One decision since the fork. `name` is the operator or algorithm, empty where the log has none yet."""

    iteration: int
    action: Action
    algorithm: Algorithm | None
    name: str
    outcome: Outcome | None


class Compared(msgspec.Struct, frozen=True):
    """One run. `since` names the moment that it is compared from: before decision K was carried out.

    `candidate` is the iteration whose candidate is compared: the run's champion, or the last one measured where the
    champion has not changed since; None where nothing was measured. Means are of greedy validation rewards in [0, 1].
    `effect` is candidate minus the champion at `since`, paired over `items` validation items, with its 95% BCa
    interval. Coverage is the share of the validation rollouts that was scored. `tokens` were spent since then, without
    the sealed test. `note` says why there is no candidate.
    """

    run: str
    since: str
    status: Status
    decisions: tuple[Taken, ...]
    candidate: int | None
    validation: float | None
    reference: float | None
    items: int
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    gate: Outcome | None
    tokens: int
    note: str
    coverage: float | None = None
    reference_coverage: float | None = None


class Span(NamedTuple):
    """A run between two moments: `start` when decision `iteration` was taken (None: it was not yet), `end` now, and
    `spent` the state whose ledger has no sealed test in it."""

    run: str
    since: str
    iteration: int
    start: RunState | None
    end: RunState
    spent: RunState


async def compare_view(store: Store, runs: Sequence[str]) -> Shown:
    """The comparison of `runs` (each once) as lines and as a table."""
    names = list(dict.fromkeys(runs))
    if not names:
        raise UsageError("compare needs the name of at least one run, or --arms to make some")
    async with opened(store) as bus:
        for name in names:
            await require_whole(store, bus, name)
        logs = {name: await read_log(bus, name) for name in names}
        ancestors = {parent.run for log in logs.values() for parent in log.ancestry.parents}
        logs |= {name: await read_log(bus, name) for name in sorted(ancestors - logs.keys())}
    found = [compared(span) for span in spans(logs, names)]
    places = " or ".join(dict.fromkeys(line.since for line in found))
    head = f"Effect: candidate minus the champion at {places}, on its validation items, with a 95% interval."
    return Shown(tuple(msgspec.to_builtins(line) for line in found), (head, table(found), *_notes(found)))


def spans(logs: Mapping[str, Log], names: Sequence[str]) -> list[Span]:
    """From where to where each of `names` is compared; `logs` holds their ancestors' too."""
    lineages = {name: logs[name].lineage for name in names}
    common = parted_at(list(lineages.values()))
    found = []
    for name, lineage in lineages.items():
        since = common or lineage[-1].first
        place = f"{owner_of(lineage, since - 1)}@{since}"
        found.append(_span(logs[name], logs[owner_of(lineage, since)], since, place))
    return found


def _span(log: Log, owner: Log, since: int, place: str) -> Span:
    """`owner` is the run of the lineage that took decision `since`."""
    end = log.at()
    numbers = [at.sequence for at in owner.at().decisions if at.decision.iteration == since]
    start = owner.at(numbers[0]) if numbers else None
    last = end.decisions[-1] if end.decisions else None
    stopped = last is not None and last.sequence > 0 and last.decision.action == "stop"
    spent = log.at(last.sequence) if last is not None and stopped else end
    return Span(log.run, place, since, start, end, spent)


def compared(span: Span) -> Compared:
    """One line of the comparison."""
    start, end, since = span.start, span.end, span.iteration
    before = _champion_evaluation(start) if start else None
    candidate = _candidate(end, since)
    trials = [trial for trial in end.trials if trial.iteration >= since]
    effect = paired(before, candidate, end.request.settings.seed if end.request else 0)
    judged = [t for t in trials if candidate is None or t.iteration == candidate.request.iteration]
    decisions = [at for at in end.decisions if at.decision.iteration >= since]
    return Compared(
        run=span.run,
        since=span.since,
        status=end.status,
        decisions=tuple(_taken(end, at, trials) for at in decisions),
        candidate=candidate.request.iteration if candidate else None,
        validation=_validation(candidate).mean,
        reference=_validation(before).mean,
        items=effect.items,
        effect=effect.mean,
        ci_low=effect.low,
        ci_high=effect.high,
        gate=judged[-1].outcome if judged else None,
        tokens=span.spent.ledger.tokens - (start.ledger.tokens if start else span.spent.ledger.tokens),
        note="" if candidate else _why_none(end, decisions, trials),
        coverage=_validation(candidate).coverage,
        reference_coverage=_validation(before).coverage,
    )


class Effect(NamedTuple):
    """Mean of candidate minus reference over `items` items with its 95% interval; None without a shared item."""

    items: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def paired(before: Evaluation | None, after: Evaluation | None, seed: int) -> Effect:
    """The difference on the validation items that both sides have a greedy rollout of."""
    import numpy as np

    if before is None or after is None:
        return Effect(0)
    old, new = item_means(before, "validation"), item_means(after, "validation")
    shared = sorted(old.keys() & new.keys())
    if not shared:
        return Effect(0)
    changes = np.array([new[item] - old[item] for item in shared], dtype=np.float64)
    interval = bca(changes, TAIL, seed_for(seed, "compare", after.request.iteration))
    return Effect(len(shared), float(changes.mean()), interval.low, interval.high)


def _champion_evaluation(state: RunState) -> Evaluation | None:
    return state.evaluations.get(state.champion.evaluation) if state.champion else None


def _candidate(end: RunState, since: int) -> Evaluation | None:
    """The champion, where it was crowned since, or the last candidate measured since."""
    crowned = _champion_evaluation(end)
    if crowned is not None and crowned.request.iteration >= since:
        return crowned
    measured = [e for e in candidate_evaluations(end) if e.completed is not None and e.request.iteration >= since]
    return measured[-1] if measured else None


class _Scored(NamedTuple):
    mean: float | None = None
    coverage: float | None = None


def _validation(found: Evaluation | None) -> _Scored:
    score = found.completed.scores.get("validation") if found and found.completed else None
    return _Scored(score.mean, score.coverage) if score else _Scored()


def _taken(end: RunState, at: DecisionAt, trials: Sequence[Trial]) -> Taken:
    decision = at.decision
    edits = (origin for origins in end.origins.values() for origin in origins if origin.measured)
    name = next((edit.operator for edit in edits if edit.iteration == decision.iteration), decision.algorithm or "")
    outcome = next((trial.outcome for trial in trials if trial.iteration == decision.iteration), None)
    return Taken(decision.iteration, decision.action, decision.algorithm, name, outcome)


def _why_none(end: RunState, decisions: Sequence[DecisionAt], trials: Sequence[Trial]) -> str:
    """Why no candidate was measured since: a failed lever, a mask of the algorithm asked for, or a stop."""
    if failed := [trial.detail for trial in trials if trial.outcome == "failed"]:
        return failed[-1]
    if isinstance(end.ending, RunFailed):
        return end.ending.error
    if not decisions:
        return "it has not decided yet"
    first, asked = decisions[0].decision, end.request.settings.algorithm if end.request else None
    if first.action != "stop":
        return "its candidate is not measured yet"
    return f"{asked} is masked: {first.masks[asked]}" if asked in first.masks else first.reason


# -- showing -----------------------------------------------------------------------------------------------------

_LEVERS: dict[Action, str] = {"edit_harness": "edit", "train_weights": "train", "sample": "sample", "stop": "stop"}
_LEFT = ("run", "since then", "effect", "gate")


def table(lines: Iterable[Compared]) -> Table:
    """One run a row."""
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in ("run", "since then", "valid", "effect", "gate", "tokens"):
        wraps = name == "since then"
        view.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=not wraps, overflow="fold")
    for line in lines:
        effect = "-" if line.effect is None else f"{line.effect:+.3f} [{line.ci_low:+.3f}, {line.ci_high:+.3f}]"
        view.add_row(
            Text(line.run),
            Text(", ".join(_decision(taken) for taken in line.decisions[:1] + _levers(line.decisions[1:])) or "-"),
            score_text(line.validation, line.coverage),
            Text(effect),
            line.gate or "-",
            f"{line.tokens:,}",
        )
    return view


def _levers(taken: tuple[Taken, ...]) -> tuple[Taken, ...]:
    """All but the stop, with which every run that has ended ends."""
    return tuple(one for one in taken if one.action != "stop")


def _decision(taken: Taken) -> str:
    return f"{_LEVERS[taken.action]} {taken.name}".strip()


def _notes(lines: Iterable[Compared]) -> list[str]:
    return [f"{line.run}: {line.note}" for line in lines if line.note]

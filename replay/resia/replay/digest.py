"""The digest of a run's state: equal for two runs of one seed, whatever their names, workers, clocks and interleaving.

`view` is what it is taken over, canonical and readable, so that two digests which differ can be compared. Everything
is keyed by what it means (purpose, iteration, split, item, index, round), never by event id or number. Left out: ids,
event numbers, Merkle roots, durations and speeds, those of kernels among them, `reused` marks, what an outside party
said when a rollout failed, the lineage that names other runs, messages that no event could be read from, that a clock
said a budget is spent (the decision that stopped for it is here), and the ledger by cycle, whose sum is here. Settings
count by their own digest, and a field at its default is not there, so a field that a later version adds leaves the
digests of old logs as they are. Total on any state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from resia.events import DriftFailed, DriftMeasured, RolloutRecorded
from resia.events.ids import sha256

from .state import Champion, Evaluation, RunState, Training

Plain = Any
# Field names that hold an id, a number or a clock's word in every event that has them.
LEFT_OUT = frozenset(
    {
        *("request", "evaluation", "champion_evaluation", "training"),
        *("merkle_root", "root_from", "root_to"),
        *("tokens_per_s", "seconds", "reused"),
        "exchange",  # how often an endpoint had to be asked
    }
)
UNKNOWN = "unknown"


def digest(state: RunState) -> str:
    """SHA-256 in hex over the canonical JSON of `view(state)`."""
    return sha256(_canonical(view(state)))


def view(state: RunState) -> dict[str, Plain]:
    """What the digest is of, as plain values."""
    names = {id_: f"{e.request.purpose}/{e.request.iteration}" for id_, e in state.evaluations.items()}
    known = _sorted(
        [harness, _plain(origin)] for harness, found in state.origins.items() for origin in found if not origin.measured
    )
    drifts = {names.get(id_, UNKNOWN): _drift(found) for id_, found in state.drifts.items()}
    return {
        **({"known_edits": known} if known else {}),
        **({"drifts": drifts} if drifts else {}),
        "status": state.status,
        "request": _event(state.request, "parent", "settings"),
        "harnesses": _sorted(_event(harness) for harness in state.harnesses.values()),
        "adapters": _sorted(_event(adapter) for adapter in state.adapters.values()),
        "evaluations": _sorted(_evaluation(found) for found in state.evaluations.values()),
        "trainings": _sorted(_training(found, names) for found in state.trainings.values()),
        "champion": _champion(state.champion, names),
        "baseline": _champion(state.baseline, names),
        "decisions": [_event(decision) for _, decision in state.decisions],
        "trials": [_plain(trial) for trial in state.trials],
        "fresh_from": state.fresh_from,
        "alarms": [{**_event(a), "evaluation": names.get(a.evaluation, UNKNOWN)} for a in state.alarms],
        "unsealed": _event(state.unsealed),
        "controls": _event(state.controls),
        "controls_asked": state.controls_asked,
        "ending": _event(state.ending),
        "ledger": _plain(state.ledger),
        **({"kernels": kernels} if (kernels := _kernels(state)) else {}),
    }


def _canonical(value: Plain) -> bytes:
    # The standard library's writer takes what msgspec's refuses: lone surrogates, integers over 64 bits, NaN.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sorted(values: Iterable[Plain]) -> list[Plain]:
    return sorted(values, key=_canonical)


def _event(event: msgspec.Struct | None, *also: str) -> Plain:
    """Fields of an event but those that every digest leaves out, and `also`."""
    if event is None:
        return None
    fields: dict[str, Plain] = _plain(event)
    return {name: value for name, value in fields.items() if name not in LEFT_OUT and name not in also}


def _plain(value: object) -> Plain:
    """Structs as dictionaries without what is at its default, tuples as lists."""
    if isinstance(value, msgspec.Struct):
        held = ((name, getattr(value, name), default) for name, default in _defaults(type(value)))
        return {name: _plain(found) for name, found, default in held if found != default}
    if isinstance(value, Mapping):
        return {name: _plain(found) for name, found in value.items()}
    if isinstance(value, tuple):
        return [_plain(found) for found in value]
    return value


@cache
def _defaults(struct: type[msgspec.Struct]) -> tuple[tuple[str, object], ...]:
    """Field names with their defaults; a field without one has a default that nothing equals."""
    return tuple(
        (f.name, f.default if f.default_factory is msgspec.NODEFAULT else f.default_factory())
        for f in msgspec.structs.fields(struct)
    )


def _slot(rollout: RolloutRecorded) -> list[Plain]:
    return [rollout.split, rollout.item, rollout.index, rollout.round]


def _rollouts(rollouts: Mapping[str, RolloutRecorded]) -> list[Plain]:
    return _sorted(_event(rollout) for rollout in rollouts.values())


def _evaluation(found: Evaluation) -> Plain:
    return {
        "request": _event(found.request),
        "rollouts": _rollouts(found.rollouts),
        "failed": _sorted(_event(failed, "error") for failed in found.failed.values()),
        "shards": _sorted([shard, total] for shard, total in found.shards.items()),
        "completed": _completed(found),
    }


def _drift(found: DriftMeasured | DriftFailed) -> Plain:
    return _event(found, "error") if isinstance(found, DriftFailed) else _event(found)


def _completed(found: Evaluation) -> Plain:
    if found.completed is None:
        return None
    listed = (found.rollouts.get(id_) for id_ in found.completed.rollouts)
    return {**_event(found.completed), "rollouts": _sorted(_slot(r) if r else UNKNOWN for r in listed)}


def _training(found: Training, names: Mapping[str, str]) -> Plain:
    return {
        "request": {**_event(found.request, "settings"), "evaluation": names.get(found.request.evaluation, UNKNOWN)},
        "rollouts": _rollouts(found.rollouts),
        "fresh": _sorted(
            [round_, _sorted([s, n] for s, n in shards.items())] for round_, shards in found.fresh.items()
        ),
        "asked": sorted(found.asked),
        "rounds": _sorted(_event(done) for done in found.rounds),
        "steps": _sorted(_event(step) for step in found.steps),
        "outcome": _event(found.outcome),
    }


def _kernels(state: RunState) -> list[Plain]:
    """Which kernels have a verdict, and which. How long one took is a clock's word, and so is what is said of it; how
    often the bench had to be asked is left out as every retry is."""
    judged = [(kernel.submitted, verdict) for kernel in state.kernels.values() if (verdict := kernel.verdict)]
    return _sorted([_event(asked, "rollout", "attempt"), getattr(verdict, "failure", "")] for asked, verdict in judged)


def _champion(champion: Champion | None, names: Mapping[str, str]) -> Plain:
    if champion is None:
        return None
    return {**_event(champion), "evaluation": names.get(champion.evaluation, UNKNOWN)}

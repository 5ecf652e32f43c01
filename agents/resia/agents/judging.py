"""The verdict on a candidate: the gate's, unless a probe of what the gate would accept says that the gain is not real.

Pure: gathers the inputs of `gate` and `probes` from the folded state. What can be read off the candidate's own rollouts
(the second verifier, the search-validation gap) is probed for each candidate; what must be sampled again (perturbed
prompts) only for one that would be crowned, and then for the champion too, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from resia.events import (
    BASELINES,
    PERTURBATIONS,
    Candidate,
    CandidateAccepted,
    CandidateRejected,
    CandidateUndecided,
    EvaluationRequested,
    Fact,
    Perturbation,
    Probe,
    ProbeAlarmed,
    ProbeReport,
    RunRequested,
    Slot,
    Split,
)
from resia.events.ids import event_id, seed_for
from resia.replay.identity import decided
from resia.replay.state import Champion, Evaluation, RunState

from .gate import gap_probe, judge
from .probes import Sides, alarm_of, probe
from .taskwork import item_means

ROLE = "feedback"
Verdict = CandidateAccepted | CandidateRejected | CandidateUndecided
_VERDICTS: Mapping[str, type[Verdict]] = {
    "accept": CandidateAccepted,
    "reject": CandidateRejected,
    "undecided": CandidateUndecided,
}


class Conclusion(NamedTuple):
    """A verdict with its alarms; without one, the evaluations asked for first (none: they are under way)."""

    verdict: Verdict | None
    alarms: tuple[ProbeAlarmed, ...] = ()
    asked: tuple[EvaluationRequested, ...] = ()


class _Pair(NamedTuple):
    """What is compared: the evaluations of champion and candidate."""

    before: Evaluation
    after: Evaluation


def conclude(state: RunState, request: RunRequested, champion: Champion, found: Evaluation, fact: Fact) -> Conclusion:
    """What is to be said of the candidate measured by `found`, on `fact`."""
    pair = _Pair(state.evaluations[champion.evaluation], found)
    verdict = _gated(state, request, champion, pair)
    reports = _verifier(request, pair, verdict.gate.test)
    gap = _gap(request, pair)
    returned = request.settings.loop.mode in BASELINES  # whatever the gate says, so there is no crown to guard
    if isinstance(verdict, CandidateAccepted) and not returned and not _blocking(request, reports, gap):
        if _has_asked(state, fact):
            return Conclusion(None)
        pairs = _perturbed(state, request, pair)
        if pairs is None:
            return Conclusion(None, asked=_to_ask(state, request, pair))
        reports += _held_up(request, pair, pairs, verdict.gate.test)
    alarms = [*_alarms(request, found, reports), *gap]
    return Conclusion(_with_probes(verdict, reports, _blocking(request, reports, gap)), tuple(alarms))


# -- the gate --------------------------------------------------------------------------------------------------------


def _gated(state: RunState, request: RunRequested, champion: Champion, pair: _Pair) -> Verdict:
    rule = _RULES[request.settings.gate.retention]
    test, old, new = state.gates + 1, item_means(pair.before, "validation"), item_means(pair.after, "validation")
    shared = sorted(old.keys() & new.keys())  # an item lost to infrastructure on either side is no evidence
    result = judge(
        {item: new[item] for item in shared},
        {item: old[item] for item in shared},
        binary=request.binary,
        test=test,
        settings=request.settings.gate,
        solved=rule.solved(champion, pair),
        seed=seed_for(request.settings.seed, "gate", test),
    )
    report = msgspec.structs.replace(result.report, rule=rule.name)
    return _VERDICTS[result.outcome](pair.after.id, champion.evaluation, report)


def _solved_greedily(champion: Champion, pair: _Pair) -> dict[str, tuple[float, float]]:
    """Greedy reward before and after on the canaries and on the validation items that the champion solved: of what it
    solved by luck, luck loses some again."""
    solved = {r.item for r in pair.before.rollouts.values() if r.split == "validation" and r.success}
    old = item_means(pair.before, "search") | item_means(pair.before, "validation")
    new = item_means(pair.after, "search") | item_means(pair.after, "validation")
    names = sorted(solved | set(champion.canaries))
    return {item: (old[item], new[item]) for item in names if item in old and item in new}


def _solved_again(champion: Champion, pair: _Pair) -> dict[str, tuple[float, float]]:
    """Mean sampled reward before and after on the canaries, which the champion's greedy rollouts chose: its sampled
    ones say what each is worth to it without that luck."""
    old, new = (item_means(side, "search", greedy=False) for side in pair)
    return {item: (old[item], new[item]) for item in champion.canaries if item in old and item in new}


class _Rule(NamedTuple):
    name: str
    solved: Callable[[Champion, _Pair], dict[str, tuple[float, float]]]


_RULES = {"greedy": _Rule("gate/1", _solved_greedily), "sampled": _Rule("gate/2", _solved_again)}


# -- probes that read what is there ----------------------------------------------------------------------------------


def _gap(request: RunRequested, pair: _Pair) -> tuple[ProbeAlarmed, ...]:
    """The search-validation gap on items that both sides answered greedily; sampled scores would not compare."""
    if "search-validation-gap" not in request.settings.gate.probes.on:
        return ()
    changes: list[float] = []
    splits: tuple[Split, ...] = ("search", "validation")
    for split in splits:
        old, new = item_means(pair.before, split), item_means(pair.after, split)
        shared = old.keys() & new.keys()
        if not shared:
            return ()
        changes.append(sum(sorted(new[item] - old[item] for item in shared)) / len(shared))
    alarm = gap_probe(changes[0], changes[1], request.settings.gate, evaluation=pair.after.id)
    return (alarm,) if alarm else ()


def _verifier(request: RunRequested, pair: _Pair, test: int) -> tuple[ProbeReport, ...]:
    if not request.verifier or "verifier" not in request.settings.gate.probes.on:
        return ()
    checked = Sides(*(_second_scores(side, request.verifier) for side in pair))
    return (_report(request, "verifier", pair, checked, test),)


def _second_scores(found: Evaluation, metric: str) -> dict[str, float]:
    """The metric of each validation item's greedy rollout; an answer that failed is worth 0 to any verifier."""
    rollouts = [r for r in found.rollouts.values() if r.split == "validation" and r.greedy and r.probe is None]
    scores = {r.item: 0.0 if r.failure else r.metrics.get(metric) for r in sorted(rollouts, key=lambda r: r.item)}
    return {item: score for item, score in scores.items() if score is not None}


# -- probes that sample again ----------------------------------------------------------------------------------------


def _wanted(request: RunRequested) -> tuple[Perturbation, ...]:
    return tuple(p for p in PERTURBATIONS if p in request.perturbations and p in request.settings.gate.probes.on)


def _probed(state: RunState, candidate: Candidate, wanted: Sequence[Perturbation]) -> Evaluation | None:
    """The evaluation that probed this candidate in all the ways that are wanted, under way or closed."""
    asked = (state.evaluations[id_] for id_ in state.evaluation_order)
    probes = (e for e in asked if e.request.purpose == "probe" and e.request.candidate == candidate)
    return next((e for e in probes if {slot.probe for slot in e.request.slots} >= set(wanted)), None)


def _perturbed(state: RunState, request: RunRequested, pair: _Pair) -> _Pair | None:
    """Both sides' probes; None where one of them is not in yet."""
    wanted = _wanted(request)
    if not wanted:
        return pair
    sides = [_probed(state, side.request.candidate, wanted) for side in pair]
    closed = [side for side in sides if side is not None and side.completed is not None]
    return _Pair(*closed) if len(closed) == len(pair) else None


def _to_ask(state: RunState, request: RunRequested, pair: _Pair) -> tuple[EvaluationRequested, ...]:
    """A greedy rollout a validation item and perturbation, for each side that has not been asked for them."""
    wanted, seed = _wanted(request), request.settings.seed
    # Seeds do not depend on the candidate: both sides meet the same perturbation.
    slots = tuple(
        Slot("validation", item, number, seed_for(seed, "probe", name, item), True, name)
        for number, name in enumerate(wanted)
        for item in request.items["validation"]
    )
    return tuple(
        EvaluationRequested("probe", pair.after.request.iteration, side.request.candidate, slots)
        for side in pair
        if _probed(state, side.request.candidate, wanted) is None
    )


def _has_asked(state: RunState, fact: Fact) -> bool:
    """Whether `fact` has led to a request for probes: the verdict then follows from their end and not from it again,
    since what one fact leads to has one id in each place."""
    handler = decided(ROLE, fact.envelope.type)
    return event_id(fact.envelope.run, fact.envelope.id, handler, 0) in state.evaluations


def _held_up(request: RunRequested, pair: _Pair, probed: _Pair, test: int) -> tuple[ProbeReport, ...]:
    return tuple(
        _report(request, name, pair, Sides(*(_rewards_under(side, name) for side in probed)), test)
        for name in _wanted(request)
    )


def _rewards_under(found: Evaluation, name: Perturbation) -> dict[str, float]:
    """Reward of each item under a perturbation; an item that infrastructure lost is absent."""
    return {r.item: r.reward for r in sorted(found.rollouts.values(), key=lambda r: r.item) if r.probe == name}


# -- what comes of them ----------------------------------------------------------------------------------------------


def _report(request: RunRequested, name: Probe, pair: _Pair, probed: Sides, test: int) -> ProbeReport:
    gate = request.settings.gate
    score = Sides(*(item_means(side, "validation") for side in pair))
    seed = seed_for(request.settings.seed, "probe", name, test)
    return probe(name, score, probed, gate.probes, alpha=gate.alpha, seed=seed)


def _alarms(request: RunRequested, found: Evaluation, reports: Sequence[ProbeReport]) -> list[ProbeAlarmed]:
    gate = request.settings.gate
    made = (alarm_of(report, gate.probes, alpha=gate.alpha, evaluation=found.id) for report in reports)
    return [alarm for alarm in made if alarm]


def _blocking(request: RunRequested, reports: Sequence[ProbeReport], gap: Sequence[ProbeAlarmed]) -> list[str]:
    """Names of the probes whose alarm keeps the candidate from being crowned."""
    alarmed = [report.probe for report in reports if report.alarmed] + [alarm.probe for alarm in gap]
    return [name for name in alarmed if name in request.settings.gate.probes.block]


def _with_probes(verdict: Verdict, reports: tuple[ProbeReport, ...], blocking: Sequence[str]) -> Verdict:
    """The verdict with what the probes found; one that would crown a candidate under a blocking alarm rejects it."""
    report = msgspec.structs.replace(verdict.gate, probes=reports)
    if not isinstance(verdict, CandidateAccepted) or not blocking:
        return msgspec.structs.replace(verdict, gate=report)
    reason = f"{report.reason}; but the gain does not hold: alarm of {', '.join(blocking)}"
    report = msgspec.structs.replace(report, reason=reason)
    return CandidateRejected(verdict.evaluation, verdict.champion_evaluation, report)

"""Whether a domain can be improved on at all: its scorer, its headroom, and where gold may leak.

`examine` is what `resia task check` runs: the tests of `contract`, and those that score some answers. A test for
which a domain tells too little is not judged, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from resia.events.errors import BoundaryError

from .base import Domain, Score
from .benched import Benched
from .contract import Finding, clip, content, contract, named, refusals
from .programs import Runners, no_programs
from .trials import SPLITS, Plan, Trial, Trials, every_item, inside, mean, record, try_out

LEAST_HEADROOM = 0.05  # of reward between the best control and the best that can be had
QUOTED = 12  # characters from which an item's prompt inside the task's own text is no accident


class Case(NamedTuple):
    """A domain and what was tried on it."""

    domain: Domain
    trials: Trials


class Examined(NamedTuple):
    """What the tests found, and the record of what was tried, to compare elsewhere; empty where nothing could be."""

    findings: list[Finding]
    record: list[str]


def examine(domain: Domain, plan: Plan, programs: Runners = no_programs) -> Examined:
    """Every test that one process can make. What the domain raises while it is asked is a finding too. `programs` runs
    answers that are programs."""
    found = [
        _asked("refusals", lambda: named("refusals", refusals(domain))),
        _asked("content", lambda: content(domain)),
    ]
    form = contract(domain)
    if any(finding.passed is False for finding in form):
        return Examined([*form, *found, Finding("scores", None, "not tried: the domain's form is not sound")], [])
    if isinstance(domain, Benched):
        return Examined([*form, *found, Finding("scores", None, "not tried: a kernel-bench scores its answers")], [])
    try:
        case = Case(domain, try_out(domain, plan, programs=programs))
    except BoundaryError as cause:  # which says what failed
        return Examined([*form, *found, Finding("scores", False, str(cause))], [])
    except Exception as cause:  # noqa: BLE001 - whatever a domain's code raises is what is to be told
        return Examined([*form, *found, Finding("scores", False, f"scoring fails: {_said(cause)}")], [])
    scored = [_asked(name, partial(test, case)) for name, test in _TESTS.items()]
    return Examined([*form, *found, *scored], record(domain, case.trials))


def _asked(check: str, test: Callable[[], Finding]) -> Finding:
    try:
        return test()
    except Exception as cause:  # noqa: BLE001 - as in `examine`
        return Finding(check, False, f"the domain raises {_said(cause)}")


def _said(cause: Exception) -> str:
    return clip(f"{type(cause).__name__}: {cause}")


def repeated(first: Sequence[str], second: Sequence[str]) -> Finding:
    """Whether two records of one domain (`trials.record`), of processes apart, agree line by line."""
    for here, there in zip(first, second, strict=False):
        if here != there:
            detail = f"another process found {clip(there)} where this one found {clip(here)}"
            return Finding("repeats", False, detail)
    if len(first) != len(second):
        return Finding("repeats", False, f"{len(first)} findings here and {len(second)} in another process")
    return Finding("repeats", True, f"{len(first)} digests, items, scores and controls came out again elsewhere")


def _scores(case: Case) -> Finding:
    faults = ((trial, _fault(trial.score, case.domain.spec.binary)) for trial in case.trials.tried)
    wrong = next((f"item '{t.item.id}', answer {t.text}: {fault}" for t, fault in faults if fault), "")
    for control in case.trials.controls:
        if not wrong and not math.isfinite(control.mean):
            wrong = f"control '{control.name}' on {control.split} is {control.mean}"
    right = f"{len(case.trials.tried)} scores and {len(case.trials.controls)} controls are sound"
    return named("scores", (wrong, right))


def _fault(score: Score, binary: bool) -> str:
    if not 0.0 <= score.reward <= 1.0:
        return f"the reward is {score.reward}: give a number from 0 to 1"
    if binary and score.reward not in (0.0, 1.0):
        return f"the reward is {score.reward} and the spec says binary"
    if score.failure is not None and (score.reward or score.success):
        return f"it failed ({score.failure}) and has reward {score.reward}, success {score.success}"
    return ""


def _direction(case: Case) -> Finding:
    """On each item, a better metric of a valid answer never has a lower reward."""
    spec = case.domain.spec
    if not spec.metric:
        return Finding("direction", None, "the spec names no metric that the reward is made of")
    for item, trials in _by_item(case).items():
        held = [(t.score.metrics.get(spec.metric, math.nan), t.score.reward) for t in trials if not t.score.failure]
        if any(math.isnan(metric) for metric, _ in held):
            return Finding("direction", False, f"a score of item '{item}' has no metric '{spec.metric}'")
        ordered = sorted(held, key=lambda pair: (pair[0] if spec.direction == "up" else -pair[0], pair[1]))
        for (worse, more), (better, less) in pairwise(ordered):
            if less < more:
                detail = f"on item '{item}', {spec.metric} {better:g} earns {less:g} and {worse:g} earns {more:g}"
                return Finding("direction", False, f"{detail}, though better is {spec.direction}")
    return Finding("direction", True, f"the reward follows {spec.metric}, better is {spec.direction}")


def _by_item(case: Case) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in case.trials.tried:
        found.setdefault(trial.item.id, []).append(trial)
    return found


def _separation(case: Case) -> Finding:
    """Right answers earn more than others, where right ones are told; else answers earn differently at all."""
    gold = {t.item.id: t for t in case.trials.tried if t.gold}
    others = [t for t in case.trials.tried if not t.gold]
    if not others:
        return Finding("separation", False, "every answer that can be tried is gold: nothing is left to get wrong")
    for trial in others:
        right = gold.get(trial.item.id)
        if right is not None and trial.score.reward > right.score.reward:
            said = f"answer {trial.text} earns {trial.score.reward:g} and gold, {right.text}, {right.score.reward:g}"
            return Finding("separation", False, f"on item '{trial.item.id}', {said}")
    if gold:
        at, by = mean([t.score.reward for t in gold.values()]), mean([t.score.reward for t in others])
        return Finding(
            "separation", at > by, f"gold earns {at:.3f} and {len(others)} other answers {by:.3f} on average"
        )
    rewards = {item: [t.score.reward for t in trials] for item, trials in _by_item(case).items()}
    for split in SPLITS:
        if not any(max(rewards[i]) > min(rewards[i]) for i in {t.item.id for t in others if t.item.split == split}):
            detail = f"every answer tried on {split} earns the same: the scorer does not tell right from wrong"
            return Finding("separation", False, f"{detail}, or tell a right answer by inside")
    spread = mean([max(row) - min(row) for row in rewards.values()])
    return Finding("separation", True, f"the answers tried on an item differ by {spread:.3f} on average")


def _headroom(case: Case) -> Finding:
    """How far the best control that is no search stays below what can be had: gold's reward, or 1."""
    fixed = [c for c in case.trials.controls if c.name != "random-search" and c.split != "test"]
    if not fixed:
        return Finding("headroom", False, "the domain has no controls: nothing says what no learning reaches")
    best = max(fixed, key=lambda control: control.mean)
    gold = [t.score.reward for t in case.trials.tried if t.gold]
    top, named = (mean(gold), "gold's") if gold else (1.0, "at most")
    detail = f"control {best.name} earns {best.mean:.3f} on {best.split}, of {named} {top:.3f}"
    seen = max(t.score.reward for t in case.trials.tried)
    return Finding("headroom", top - best.mean >= LEAST_HEADROOM, f"{detail}; the best answer tried earned {seen:.3f}")


def _gold(case: Case) -> Finding:
    """Nothing that an agent is shown holds what only the scorer may know."""
    shown = {item.id: [item.prompt] for item in every_item(case.domain)}
    for trial in case.trials.tried:
        shown[trial.item.id] += trial.told
    secrets = {item: inside(case.domain, item).secrets for item in shown}
    for name, texts in shown.items():
        if found := [secret for secret in secrets[name] if any(secret in text for text in texts)]:
            return Finding("gold", False, f"what the agent is shown of item '{name}' holds its secret '{found[0]}'")
    for item in every_item(case.domain):
        if item.split != "search" and len(item.prompt) >= QUOTED and item.prompt in case.domain.spec.instruction:
            return Finding("gold", False, f"the task's own text quotes item '{item.id}' of {item.split}")
    if not any(secrets.values()):
        return Finding("gold", None, "the domain names no text that is gold, so none was looked for")
    return Finding("gold", True, f"{sum(map(bool, secrets.values()))} items with secrets, none shown to an agent")


_TESTS: dict[str, Callable[[Case], Finding]] = {
    "scores": _scores,
    "direction": _direction,
    "separation": _separation,
    "headroom": _headroom,
    "gold": _gold,
}

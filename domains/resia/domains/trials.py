"""Answers tried on items, as the admission tests need them: which, what they earn, and a record to compare.

Deterministic: equal domains and plans give equal trials, whatever process makes them. Costs one scoring an (item,
answer) pair, and the domain's fixed controls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from resia.events import ControlScore, Split

from . import form
from .base import Answer, Domain, Inside, Inspected, Item, Score, Value, following
from .programs import Runners, no_programs, worth

SPLITS: tuple[Split, ...] = ("search", "validation", "test")


class Plan(msgspec.Struct, frozen=True):
    """How much is tried: `items` of each split, and `answers` drawn by `seed` beside those that the spec names."""

    items: int = 2
    answers: int = 6
    seed: int = 0


class Trial(NamedTuple):
    """What was answered on one item, an answer a step, and its score. `told` is what the domain said to it."""

    item: Item
    text: str
    gold: bool
    score: Score
    told: tuple[str, ...]


class Trials(NamedTuple):
    tried: tuple[Trial, ...]
    controls: tuple[ControlScore, ...]


def every_item(domain: Domain) -> Iterator[Item]:
    return (item for split in SPLITS for item in domain.items(split))


def inside(domain: Domain, item: str) -> Inside:
    """What the domain tells of an item's inside; nothing where it tells none."""
    return domain.inside(item) if isinstance(domain, Inspected) else Inside()


def answers(domain: Domain, plan: Plan) -> tuple[dict[str, Value], ...]:
    """The references, the neutral answers and drawn ones, each once, as the domain parses them."""
    spec = domain.spec
    drawn = form.drawn(spec.parameters, plan.answers, plan.seed) if all(p.choices for p in spec.parameters) else ()
    given = [*(reference.answer for reference in spec.references), *spec.neutral_answers, *drawn]
    parsed = [domain.parse(answer) for answer in given]
    return tuple({domain.render(answer): answer for answer in parsed}.values())


def chosen(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items spread evenly over a split."""
    taken = min(count, len(items))
    return [items[number * len(items) // taken] for number in range(taken)]


def try_out(domain: Domain, plan: Plan, backwards: bool = False, programs: Runners = no_programs) -> Trials:
    """Every answer on the chosen items of every split, gold too where it is told, and the fixed controls.

    `backwards` asks in the opposite order and gives the same, unless scores depend on what was scored before;
    `programs` runs answers that are programs.
    """
    todo = [
        (item, rollout, gold)
        for split in SPLITS
        for item in chosen(domain.items(split), plan.items)
        for rollout, gold in _given(domain, item, plan)
    ]
    if not backwards:
        return Trials(tuple(_tried(domain, programs, *one) for one in todo), domain.controls(0, plan.seed))
    controls = domain.controls(0, plan.seed)
    return Trials(tuple([_tried(domain, programs, *one) for one in reversed(todo)][::-1]), controls)


def _given(domain: Domain, item: Item, plan: Plan) -> list[tuple[list[dict[str, Value]], bool]]:
    """The rollouts to try on an item, and whether each is gold: at every step the same answer, or, where there are
    several steps and no gold, answers drawn for each."""
    steps, gold = domain.spec.steps, inside(domain, item.id).gold
    others = [[answer] for answer in answers(domain, plan) if answer != gold]
    if steps > 1:
        draw = random.Random(plan.seed)
        others = [[draw.choice(others)[0] for _ in range(steps)] for _ in others]
    rollouts = [(rollout, False) for rollout in others]
    return rollouts if gold is None else [*rollouts, ([gold] * steps, True)]


def _tried(domain: Domain, programs: Runners, item: Item, rollout: Sequence[Answer], gold: bool) -> Trial:
    """The rollout, as far as the domain wants answers."""
    given, told = [rollout[0]], []
    for answer in rollout[1:]:
        if (said := following(domain, item.id, given)) is None:
            break
        told.append(said)
        given.append(answer)
    text = " then ".join(map(domain.render, given))
    return Trial(item, text, gold, worth(domain, item.id, given, programs), tuple(told))


def record(domain: Domain, found: Trials) -> list[str]:
    """A line of text for the digest, for every item, every trial and every control: what has to come out again."""
    lines = [f"digest {domain.digest}"]
    lines += [f"item {item.id} {item.prompt!r}" for item in every_item(domain)]
    measured = domain.spec.measured  # on a clock, so the numbers differ each time and what failed how does not
    lines += [f"item {t.item.id}, answer {t.text}: {_said(t.score, measured)} {t.told!r}" for t in found.tried]
    return [
        *lines,
        *(f"control {c.name} on {c.split}: {'' if measured else repr(c.mean)} {c.answer}" for c in found.controls),
    ]


def _said(score: Score, measured: bool) -> str:
    if measured:
        return f"failure {score.failure}"
    return msgspec.json.encode(score, order="deterministic").decode()


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

"""A domain of one's own: choose the number from 0 to 99 that hits a hidden target near the one in the prompt.

What a domain is stands in `resia.domains.base`: items, a task spec, `parse`, `render`, `score` and `controls`, and
`inside` for the admission tests (`resia task check hidden-number`). The target is always `shift` above the number that
an item shows, which an agent can only find out from its rewards.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from resia.domains.base import Answer, Inside, Item, Parameter, Reference, Score, TaskSpec, Value
from resia.events import ControlScore, Split
from resia.events.ids import seed_for, sha256

NUMBERS = tuple(range(100))
SPLITS: tuple[Split, ...] = ("search", "validation", "test")
SPEC = TaskSpec(
    name="hidden-number",
    instruction="Choose the number that hits a hidden target near the number shown.\nReply with one line: number=50",
    tool="choose",
    parameters=(Parameter("number", NUMBERS, 50, "the number"),),
    references=(Reference("middle", {"number": 50}, "the middle of the range"),),
    neutral_answers=({"number": 10}, {"number": 40}, {"number": 90}),
    objective="mean",
    metric="off",
    direction="down",
)


class HiddenNumberOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`items` a split (the gate wants 12 on validation); the target is `shift` above the number shown."""

    items: Annotated[int, Meta(ge=1, le=30)] = 12
    shift: Annotated[int, Meta(ge=0, le=9)] = 7
    data_seed: int = 0


class HiddenNumber:
    """Implements `resia.domains.base.Domain`."""

    Options = HiddenNumberOptions
    spec = SPEC

    def __init__(self, options: HiddenNumberOptions) -> None:
        self.digest = sha256(msgspec.json.encode(options, order="deterministic"))
        self._items: dict[Split, tuple[Item, ...]] = {}
        self._targets: dict[str, int] = {}
        numbers = iter(random.Random(seed_for(options.data_seed)).sample(range(90), options.items * len(SPLITS)))
        for split in SPLITS:
            shown = [next(numbers) for _ in range(options.items)]  # of no number that another split shows
            items = tuple(Item(f"{split}-{n:02d}", split, f"shown={number}") for n, number in enumerate(shown))
            self._items[split] = items
            self._targets |= {item.id: number + options.shift for item, number in zip(items, shown, strict=True)}

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        number = request.get("number", 50)
        if set(request) - {"number"} or type(number) is not int or number not in NUMBERS:
            raise ValueError(f"the request is {dict(request)!r}: give number, one of 0 to 99")
        return {"number": number}

    def render(self, answer: Answer) -> str:
        return f"number={answer['number']}"

    def score(self, item: str, answer: Answer) -> Score:
        """1 at the target, 0 from 50 away; success is to come nearer than the middle does."""
        off = abs(int(answer["number"]) - self._targets[item])
        success = off < abs(50 - self._targets[item])
        return Score(max(0.0, 1.0 - off / 50), success, None, "near" if success else "far", {"off": float(off)})

    def inside(self, item: str) -> Inside:
        """The target, which no text that an agent sees may hold."""
        gold = self.parse({"number": self._targets[item]})
        return Inside(gold, (self.render(gold),))

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """The middle, and random search: the best on the search items of as many numbers as `budget` pays for."""
        drawn = random.Random(seed).sample(NUMBERS, min(max(budget // len(self._items["search"]), 1), len(NUMBERS)))
        best = max(drawn, key=lambda number: self._mean("search", number))
        return tuple(
            ControlScore(name, split, self._mean(split, number), len(self._items[split]), answer=f"number={number}")
            for split in SPLITS
            for name, number in (("middle", 50), ("random-search", best))
        )

    def _mean(self, split: Split, number: int) -> float:
        rewards = [self.score(item.id, {"number": number}).reward for item in self._items[split]]
        return sum(rewards) / len(rewards)

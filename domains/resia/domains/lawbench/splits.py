"""Search, validation and test: drawn by class and seed, or as given; near-duplicates never straddle them.

In a drawn split near-duplicates move as one. Where a source gives the splits, what is near to the test leaves
validation and search, and what is near to validation leaves the search: the published test stays whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resia.events import Split

from .facts import SPLITS, Fact
from .near import groups, near_pairs

SHARES: Mapping[Split, float] = {"search": 0.6, "validation": 0.1, "test": 0.3}


class Layout(NamedTuple):
    """The facts of each split; `group` of each fact's near-duplicates by its id; how many facts `left_out` for theirs
    in a later split."""

    facts: Mapping[Split, tuple[Fact, ...]]
    group: Mapping[str, int]
    left_out: int


def lay_out(facts: Sequence[Fact], seed: int, shares: Mapping[Split, float] = SHARES) -> Layout:
    """Divide `facts`: those without a split are drawn by `shares`, stratified by their charges; the rest stay."""
    group = groups(len(facts), near_pairs([fact.text for fact in facts]))
    members: dict[int, list[Fact]] = defaultdict(list)
    for number, fact in zip(group, facts, strict=True):
        members[number].append(fact)
    given = {number: _latest(held) for number, held in members.items()}
    drawn = _drawn({n: held for n, held in members.items() if given[n] is None}, seed, shares)
    place = {number: given[number] or drawn[number] for number in members}
    # A fact that is still to be drawn joins a search group or a drawn one, and never a published validation or test.
    kept = [
        (fact, place[n])
        for fact, n in zip(facts, group, strict=True)
        if fact.split == place[n] or (fact.split is None and (given[n] is None or place[n] == "search"))
    ]
    divided = {split: tuple(fact for fact, its in kept if its == split) for split in SPLITS}
    numbers = {fact.id: number for fact, number in zip(facts, group, strict=True)}
    return Layout(divided, numbers, len(facts) - len(kept))


def _latest(held: Sequence[Fact]) -> Split | None:
    """The last split that any of a group's facts is given to, which is then the place of them all."""
    given = [SPLITS.index(fact.split) for fact in held if fact.split is not None]
    return SPLITS[max(given)] if given else None


def _drawn(members: Mapping[int, Sequence[Fact]], seed: int, shares: Mapping[Split, float]) -> dict[int, Split]:
    """Groups in the order of their charges, those at random; each goes where most is lacking of the shares so far.

    Neighbours in that order have the same charge, so each charge is divided by the shares as well as whole facts can.
    """
    rng = np.random.default_rng([seed])
    classes = sorted({held[0].charges for held in members.values()})
    rank = dict(zip(classes, rng.permutation(len(classes)).tolist(), strict=True))
    numbers = sorted(members)
    luck = dict(zip(numbers, rng.permutation(len(numbers)).tolist(), strict=True))
    placed: dict[int, Split] = {}
    filled = dict.fromkeys(shares, 0)
    for number in sorted(numbers, key=lambda n: (rank[members[n][0].charges], luck[n])):
        size = len(members[number])
        total = sum(filled.values()) + size
        split = max(shares, key=lambda name: shares[name] * total - filled[name])
        placed[number] = split
        filled[split] += size
    return placed


def sample(facts: Sequence[Fact], count: int, seed: int) -> tuple[Fact, ...]:
    """`count` of the facts, drawn by the seed and kept in order; all of them for 0 or more than there are."""
    if not count or count >= len(facts):
        return tuple(facts)
    chosen = np.random.default_rng([seed, len(facts)]).permutation(len(facts))[:count]
    return tuple(facts[number] for number in sorted(chosen.tolist()))

"""One world of one seed: what is seen of it before an algorithm is chosen, and what each algorithm returns.

Collaborators: `worlds` draws, `learner` samples and trains, the package's landscape and rules look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.choosing.learner import batch, features, sample, train
from benchmarks.choosing.worlds import WORLDS, World
from resia.agents.experience import Situation
from resia.agents.selection import choose_algorithm
from resia.events import ALGORITHMS, Algorithm, Landscape, SelectionSettings
from resia.events.ids import seed_for

SETTINGS = SelectionSettings()
GROUP = 8  # rollouts an item that every algorithm learns from


class Case(NamedTuple):
    """One world of one seed: what is seen at each group size, and what each algorithm returns."""

    world: str
    seed: int
    seen: Mapping[int, Situation]
    returns: Mapping[Algorithm, float]

    @property
    def situation(self) -> Situation:
        return self.seen[GROUP]

    def value(self, chances: Mapping[str, float]) -> float:
        return sum(chances.get(name, 0.0) * gain for name, gain in self.returns.items())


def case_of(name: str, seed: int, groups: Sequence[int], trust: float) -> Case:
    """`groups` are the sizes to look with, GROUP among them; `trust` as in `learner.train`."""
    world = WORLDS[name](_random(seed, name, "world"))
    base = np.zeros(world.base_I_T_A.shape[1:])
    seen, recorded = {}, None
    for group in groups:
        items = np.repeat(np.arange(world.search), group)
        rollouts = sample(world, base, items, _random(seed, name, "rollouts", group))
        seen[group] = _situation(world, features(world, rollouts, seed))
        recorded = batch(world, rollouts) if group == GROUP else recorded
    assert recorded is not None  # GROUP is among the groups
    returns = {a: world.gain(train(world, a, recorded, _random(seed, name, "train"), trust)) for a in ALGORITHMS}
    return Case(name, seed, seen, returns)


def _random(seed: int, *use: str | int) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, *use))


def _situation(world: World, landscape: Landscape) -> Situation:
    ruled = choose_algorithm(
        landscape,
        SETTINGS,
        built=ALGORITHMS,
        ordinal=world.ordinal,
        objective=world.objective,
        failed=(),
        rollouts_fresh=False,
        requested=None,
    )
    return Situation(landscape, SETTINGS, world.ordinal, world.objective, frozenset(ruled.masks))

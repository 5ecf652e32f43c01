"""Groups of rollouts of one item whose rewards can be compared, for every objective that learns from contrast."""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from typing import NamedTuple

from resia.events.errors import NoSignal
from resia.trainers.batch import Batch, Floats

# Below this the rewards of a group count as equal; the landscape's `informative` uses the same.
EQUAL_REWARDS_STD = 1e-6


class Group(NamedTuple):
    """Sample indices of one item and their rewards, shape (G,)."""

    members: list[int]
    rewards_G: Floats


def contrasts(batch: Batch, algorithm: str) -> list[Group]:
    """The groups whose rewards differ, by unbiased deviation, in the order of their names. Raises NoSignal, naming
    `algorithm`, when there is none."""
    rewards_S = batch.rewards()
    groups = [Group(members, rewards_S[members]) for members in batch.groups().values()]
    if all(len(group.members) < 2 for group in groups):
        raise NoSignal(
            f"every one of the {len(groups)} groups has a single rollout: {algorithm} needs at least 2 of an item"
        )
    found = [group for group in groups if _spread(group.rewards_G) > EQUAL_REWARDS_STD]
    if not found:
        raise NoSignal(
            f"rewards are constant in each of the {len(groups)} groups, so {algorithm} has no gradient to follow"
        )
    return found


def _spread(rewards_G: Floats) -> float:
    return float(rewards_G.std(ddof=1)) if len(rewards_G) > 1 else 0.0

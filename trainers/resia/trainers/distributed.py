"""A round over several ranks: rank 0 leads and the others follow.

Every rank holds the whole adapter and takes every optimiser step; the base is whole on each too, or its layers are
spread over them by FSDP, which gathers a layer when it is used. Rank 0 alone reads and writes the log. It announces
what it is about to do: load a base, begin a round, take the round's next step, or end. Where a rank is lost the round
is done again by whoever serves the run next. Collaborators: `world` connects the ranks, performing begins rounds here.
Knows nothing of the log.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from resia.events.errors import TrainerError
from resia.events.settings import EngineSettings, TrainingSettings

from .rounds import train_round

if TYPE_CHECKING:
    from .policy import Policy
    from .world import Ranks


class Load(NamedTuple):
    """Load the base of `engine`, whose digest is known, and adapt it as `training` says."""

    engine: EngineSettings
    digest: str
    training: TrainingSettings


class Round(NamedTuple):
    """Begin a round from an adapter file; `arguments` are those of `train_round` by name, but the policy and the
    clock."""

    adapter: bytes
    values: bool
    arguments: dict[str, Any]


class Advance(NamedTuple):
    """Take the round's next step, or end it."""


Order = Load | Round | Advance | None  # None: there will be no more


def round_together(policy: Policy, *args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
    """`train_round` with every rank of the policy's world; the policy has the adapter that the round begins with."""
    world = policy.world
    if world.size == 1:
        return (yield from train_round(policy, *args, **kwargs))
    given = inspect.signature(train_round).bind(policy, *args, **kwargs).arguments
    arguments = {name: value for name, value in given.items() if name not in ("policy", "clock")}
    world.announce(Round(policy.adapter_bytes(), policy.has_values, arguments))
    steps = train_round(policy, *args, **kwargs)
    while True:
        world.announce(Advance())
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield step


def follow(world: Ranks, policy_of: Callable[[Load], Policy], clock: Callable[[], float]) -> None:
    """Do what rank 0 announces until it ends. Raises RankLost when it is gone, TrainerError when the base cannot be
    loaded here."""
    policy: Policy | None = None
    steps: Iterator[Any] = iter(())
    while (order := world.heard()) is not None:
        match order:
            case Load():
                policy = policy_of(order)
                policy.join(world)
            case Round():
                assert policy is not None  # rank 0 loads before it begins
                policy.set_adapter(order.adapter, 0, values=order.values)
                steps = train_round(policy, clock=clock, **order.arguments)
            case Advance():
                with suppress(TrainerError):  # rank 0 meets the same error, and records it
                    next(steps, None)

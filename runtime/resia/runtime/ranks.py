"""A trainer of several processes: how it is found out that this is one of them, and what those without a login do.

`accelerate launch` and torchrun start the same command several times and say in the environment which of them each is.
Rank 0 is then the trainer as ever; the others never see the log, the blobs or a password.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from resia.events.errors import UsageError, WorkerError

if TYPE_CHECKING:
    from resia.trainers.distributed import Load
    from resia.trainers.policy import Policy
    from resia.trainers.world import Ranks

ROLE = "trainer"


class Place(NamedTuple):
    """This process is number `rank`, from 0, of `size`; `spread`: each holds only its share of the base's layers."""

    rank: int = 0
    size: int = 1
    spread: bool = False


def place_here(role: str, environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; raises UsageError where another role than the trainer was started several times, or where
    what the launcher says is no place."""
    try:
        rank, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        raise UsageError(
            f"RANK is '{environment.get('RANK')}' and WORLD_SIZE '{environment.get('WORLD_SIZE')}': unset both, or"
            " start the trainer by accelerate launch, which sets them to numbers"
        ) from None
    place = Place(rank, size, environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true")
    if not 0 <= place.rank < place.size:
        raise UsageError(f"RANK is {place.rank} of WORLD_SIZE {place.size}: a rank is from 0 to one below the size")
    if place.size > 1 and role != ROLE:
        raise UsageError(
            f"WORLD_SIZE asks for {place.size} processes of {role}, but only the trainer has ranks: unset it"
        )
    return place


def join(place: Place) -> Ranks | None:
    """The other ranks, None for a process that is alone."""
    if place.size == 1:
        return None
    import structlog

    from resia.trainers.world import Ranks

    ranks = Ranks(spread=place.spread)
    structlog.get_logger().info("joined", **place._asdict())
    return ranks


def follow_rank_0(place: Place, cache: Path | None) -> None:
    """Train as rank 0 says until it ends."""
    from resia.trainers.distributed import follow
    from resia.trainers.world import Ranks

    from . import assets
    from .resources import model_folder, policy_over

    def policy_of(load: Load) -> Policy:
        found = assets.model_digest(model_folder(load.engine, cache))
        if found != load.digest:
            raise WorkerError(
                f"model '{load.engine.model}' here has digest {found[:12]}, the run's has {load.digest[:12]}:"
                " pull the same asset on every machine"
            )
        return policy_over(load.engine, cache, load.digest, load.training)

    ranks = Ranks(spread=place.spread)
    follow(ranks, policy_of, time.monotonic)
    ranks.leave()


def dismiss(ranks: Ranks | None) -> None:
    """Rank 0 has no more to do, so the others end well."""
    if ranks is not None:
        ranks.announce(None)
        ranks.leave()

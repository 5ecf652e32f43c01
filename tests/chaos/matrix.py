"""Which kills there are, and how they share runs: pure, and the same for one seed.

At every boundary of the undisturbed run, each worker and the server are killed before and after the append; its writer
and the server also between the members of a batch; and whoever handles an event before the acknowledgement is sent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from histories import DECIDES, PERFORMS, ROLES
from resia.events import Fact

from .strikes import SELF, SERVER, Boundary, Moment, Point

KILLS_A_RUN = 12
APART = 2  # boundaries between two kills of a run, so that the first is over when the second comes


class Placed(msgspec.Struct, frozen=True):
    """A point and the number of the boundary that it is at."""

    at: int
    point: Point


def placed(boundaries: Sequence[Boundary], log: Sequence[Fact]) -> list[Placed]:
    """Every point of the matrix."""
    points: list[Placed] = []

    def add(at: int, event: str, moment: Moment, target: str, striker: str | None = None) -> None:
        points.append(Placed(at, Point(len(points), event, moment, target, striker=striker)))

    for at, boundary in enumerate(boundaries):
        first, last = boundary.ids[0], boundary.ids[-1]
        for target in (SELF, SERVER, *(f"{role}-1" for role in ROLES if role != boundary.role)):
            add(at, first, "before", target)
            add(at, first, "after", target)
        if len(boundary.ids) > 1:
            add(at, last, "amid", SELF)
            add(at, last, "amid", SERVER)
    at_id = {id_: at for at, boundary in enumerate(boundaries) for id_ in boundary.ids}
    for fact in log:
        for role in ROLES:
            if isinstance(fact.event, (*DECIDES.get(role, ()), *PERFORMS[role])):
                id_ = fact.envelope.id
                add(at_id.get(id_, 0), id_, "unacked", SELF, f"{role}-1")
    return points


def dealt(points: Sequence[Placed], seed: int, share: float = 1.0) -> list[list[Point]]:
    """Points shuffled and dealt to runs, `KILLS_A_RUN` at most each and apart; `share` of them in a short form."""
    shuffled = list(points)
    random.Random(seed).shuffle(shuffled)
    runs: list[list[Placed]] = []
    for found in shuffled[: round(len(shuffled) * share)]:
        fitting = (run for run in runs if len(run) < KILLS_A_RUN and all(_apart(found, other) for other in run))
        run = next(fitting, None)
        if run is None:
            runs.append([found])
        else:
            run.append(found)
    return [[found.point for found in run] for run in runs]


def _apart(one: Placed, other: Placed) -> bool:
    return abs(one.at - other.at) >= APART

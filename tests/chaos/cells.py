"""What one run of the matrix is: a name, and how it is played and judged in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from histories import ROLES, World, run_request
from resia.events import Fact
from resia.events.errors import BusError, LogError

from .actors import Actor
from .judge import Verdict, acknowledged, judge
from .stage import Stage
from .strikes import Boundary, Point, moot, struck

REQUEST = run_request(group_size=4, patience_h=2, max_iterations=6)
# Both levers, an acceptance of each, a failed edit, failed trainings and a lost rollout: every kind of event.
WORLD = World(
    training=0.3,
    edit_fails=lambda event: event.iteration == 2,
    round_fails=lambda event: event.adapter is not None and event.round == 0,
    slot_fails=lambda event, slot: event.purpose == "candidate" and slot.item == "s00" and slot.index == 1,
)
CAST = tuple(Actor(role, f"{role}-1", WORLD) for role in ROLES)


class Reference(NamedTuple):
    """The undisturbed run."""

    digest: str
    boundaries: tuple[Boundary, ...]
    log: tuple[Fact, ...]
    seconds: float


class Cell(NamedTuple):
    """One disturbed run; `play(folder, reference)` says what came of it."""

    name: str
    play: Callable[[Path, Reference], Verdict]


class Void(Exception):
    """A scenario did not happen as staged, so it shows nothing: a fault of the harness."""


def boundaries(folder: Path) -> tuple[Boundary, ...]:
    told = sorted((e for e in acknowledged(folder) if not e.already), key=lambda entry: entry.sequence)
    return tuple(Boundary(e.role, e.ids, e.sequence - len(e.ids) + 1) for e in told)


def ended(stage: Stage, finished: bool, expected: str | None, kills: int) -> Verdict:
    """Judge a run that was played; one whose log cannot be read has lost something."""
    try:
        found = judge(stage.log(), stage.folder, expected)
    except (BusError, LogError) as cause:
        found = Verdict(lost=1, notes=(f"lost: {cause}",))
    stuck = () if finished else (f"stuck: {stage.state()}",)
    return found + Verdict(kills=kills, stuck=len(stuck), notes=stuck)


def struck_cell(name: str, points: Sequence[Point], cast: Sequence[Actor] = CAST) -> Cell:
    """A run disturbed at `points`. One is missed where the run ends before its striker has come to it."""

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, cast, points) as stage:
            stage.begin(REQUEST)
            finished = stage.play()
            found = ended(stage, finished, reference.digest, struck(folder))
        return found + Verdict(missed=len(points) - struck(folder) - moot(folder))

    return Cell(name, play)


def as_fact(found: object) -> Fact:
    assert isinstance(found, Fact)
    return found

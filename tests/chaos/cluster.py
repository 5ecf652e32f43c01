"""Disturbances of a log on three nodes: its leader killed in each phase of a run, nodes paused, cut off, restarted one
after the other, rebuilt from nothing, and most of them gone for a while.

Every run must end as the undisturbed one did on a single server, and every node hold the same whole log.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from resia.events import (
    AdapterTrained,
    DecisionMade,
    EvaluationCompleted,
    Event,
    HarnessDrafted,
    HarnessEdited,
    RoundTrained,
    RunCompleted,
    ShardSampled,
    TestUnsealed,
)
from resia.events.errors import BusError
from resia.runtime.cluster.credentials import NODES

from .cells import CAST, REQUEST, Cell, Reference, ended
from .fleet import Fleet, Network
from .judge import Stall, Verdict, acknowledged
from .stage import RUN, Stage
from .strikes import LEADER, Boundary, Moment, Point, struck

# An event that ends a phase, and its first or a later occurrence: the log's leader is killed there.
PHASES: dict[str, tuple[type[Event], int]] = {
    "draft": (HarnessDrafted, 0),
    "sampling": (ShardSampled, 0),
    "evaluation": (EvaluationCompleted, 0),
    "decision": (DecisionMade, 1),
    "edit": (HarnessEdited, 0),
    "training": (RoundTrained, 0),
    "adapter": (AdapterTrained, 0),
    "test": (TestUnsealed, 0),
    "end": (RunCompleted, 0),
}
LEADER_RUNS = 3
PAUSED_S, CUT_S, OUTVOTED_S = 12.0, 12.0, 6.0
CURRENT_S = 45.0  # within which every node must hold the whole log again
EFFECT_S = 15.0  # a stall that begins later than this has another cause


class Marks:
    """When something was done to the cluster."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float]] = []

    def now(self, what: str) -> None:
        self.done.append((what, time.time()))


def every(reference: Reference) -> list[Cell]:
    """All of them; a cut needs the right to make network namespaces and says why it is left out."""
    kills = phase_points(reference)
    cells = [struck_leader(f"leader-{n}", dict(list(kills.items())[n::LEADER_RUNS])) for n in range(LEADER_RUNS)]
    return [
        Cell("whole", _cell(lambda stage, fleet, marks: stage.play())),
        *cells,
        Cell("paused-leader", _cell(_paused(leads=True))),
        Cell("paused-follower", _cell(_paused(leads=False))),
        Cell("rolling", _cell(_rolling)),
        Cell("store-lost", _cell(_store_lost)),
        Cell("no-quorum", _cell(_outvoted)),
        *_cuts(),
    ]


def phase_points(reference: Reference) -> dict[str, tuple[Boundary, Moment]]:
    """Where in the undisturbed run each phase is struck: before, amid and after an append in turn."""
    found: dict[str, tuple[Boundary, Moment]] = {}
    moments: tuple[Moment, ...] = ("before", "amid", "after")
    for n, (phase, (kind, nth)) in enumerate(PHASES.items()):
        ids = [fact.envelope.id for fact in reference.log if isinstance(fact.event, kind)]
        boundary = next(b for b in reference.boundaries if ids[nth] in b.ids)
        # After the end its writer leaves, whether it has struck or not.
        moment = "amid" if kind is RunCompleted else moments[n % 3]
        found[phase] = (boundary, "before" if moment == "amid" and len(boundary.ids) == 1 else moment)
    return found


def struck_leader(name: str, kills: dict[str, tuple[Boundary, Moment]]) -> Cell:
    points = [
        Point(n, boundary.ids[-1 if moment == "amid" else 0], moment, LEADER)
        for n, (boundary, moment) in enumerate(kills.values())
    ]

    def act(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
        del fleet
        finished = stage.play()
        for n, (phase, (_, moment)) in enumerate(kills.items()):
            path = stage.folder / f"struck-{n}"
            if path.exists():
                marks.done.append((f"leader killed, {moment} the append that ends the {phase}", path.stat().st_mtime))
        return finished

    return Cell(name, _cell(act, points))


Act = Callable[[Stage, Fleet, Marks], bool]


def _cell(act: Act, points: Sequence[Point] = (), network: bool = False) -> Callable[[Path, Reference], Verdict]:
    def play(folder: Path, reference: Reference) -> Verdict:
        with _networked(network) as net, _staged(folder, points, net) as (stage, fleet):
            marks = Marks()
            stage.begin(REQUEST)
            finished = act(stage, fleet, marks)
            behind = _settle(stage, fleet)
            found = ended(stage, finished, reference.digest, struck(folder) + (0 if points else len(marks.done)))
            # Another node's copy must be the same log: let another lead and read once more.
            fleet.kill(_leader(stage))
            again = ended(stage, True, reference.digest, 0)
            notes = tuple(f"stuck: {name} does not hold the whole log after {CURRENT_S:.0f} s" for name in behind)
            missed = len(points) - struck(folder)
            more = Verdict(stuck=len(behind), missed=missed, stalls=stalls(folder, marks), notes=notes)
            return found + again + more

    return play


@contextmanager
def _networked(wanted: bool) -> Iterator[Network | None]:
    if not wanted:
        yield None
        return
    with Network() as network:
        yield network


@contextmanager
def _staged(folder: Path, points: Sequence[Point], net: Network | None) -> Iterator[tuple[Stage, Fleet]]:
    fleet = Fleet(folder / "cluster", net)
    with Stage(folder, CAST, points, server=fleet) as stage:
        yield stage, fleet


def stalls(folder: Path, marks: Marks) -> tuple[Stall, ...]:
    """For each thing that was done, the longest time without an acknowledgement that it may have caused."""
    at = sorted(entry.at for entry in acknowledged(folder))
    found = []
    for what, when in marks.done:
        gaps = [late - max(early, when) for early, late in pairwise(at) if late > when and early < when + EFFECT_S]
        found.append(Stall(what, round(max(gaps, default=0.0), 2)))
    return tuple(found)


def _acknowledged_more(stage: Stage, count: int) -> Callable[[], bool]:
    """Whether `count` more appends were acknowledged than now."""
    enough = len(acknowledged(stage.folder)) + count
    return lambda: len(acknowledged(stage.folder)) >= enough


def _after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def _leader(stage: Stage) -> str:
    members: Any = stage.ask(lambda bus: bus.members(RUN))
    return str(members[0].name)


def _node(stage: Stage, leads: bool) -> str:
    leader = _leader(stage)
    return leader if leads else next(name for name in NODES if name != leader)


def _settle(stage: Stage, fleet: Fleet) -> list[str]:
    """Let every node come back; those that do not hold the whole log in time."""
    fleet.held.clear()
    late, behind = _after(CURRENT_S), list(NODES)
    while behind and not late():
        fleet.revive()
        try:
            members: Any = stage.ask(lambda bus: bus.members(RUN))
        except BusError:
            continue
        behind = [name for name in NODES if name not in {member.name for member in members if member.current}]
        time.sleep(0.1)
    return behind


def _paused(leads: bool) -> Act:
    """A node is stopped, with whoever talks to it, and goes on when the others have long gone on without it."""

    def act(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
        stage.play(_acknowledged_more(stage, 8))
        pid = fleet.pids[_node(stage, leads)]
        os.kill(pid, signal.SIGSTOP)
        marks.now(f"{'leader' if leads else 'follower'} paused for {PAUSED_S:.0f} s")
        stage.play(_after(PAUSED_S))
        os.kill(pid, signal.SIGCONT)
        return stage.play()

    return act


def _rolling(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
    """Each node is stopped in order and started again; the next one when all are well and a little was done."""
    for name in NODES:
        stage.play(_acknowledged_more(stage, 6))
        fleet.nodes.end(name)
        marks.now("a node stopped in order and started again")
        fleet.revive()
        stage.play(lambda: all(fleet.nodes.healthy(name) for name in NODES))
    return stage.play()


def _store_lost(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
    """The leader dies with its disk. It is started empty once the two others have agreed on what there is."""
    stage.play(_acknowledged_more(stage, 12))
    lost = _leader(stage)
    fleet.kill(lost)
    marks.now("leader killed and its store lost")
    fleet.forget(lost)
    stage.play(_acknowledged_more(stage, 1))
    fleet.held.clear()
    return stage.play()


def _outvoted(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
    """Two of three are gone for a while: nothing is acknowledged, and everything goes on when they are back."""
    stage.play(_acknowledged_more(stage, 8))
    for name in NODES[:2]:
        fleet.kill(name)
    marks.now(f"two of three nodes gone for {OUTVOTED_S:.0f} s")
    stage.play(_after(OUTVOTED_S))
    fleet.held.clear()
    return stage.play()


def _cuts() -> list[Cell]:
    """The leader and its clients are on different sides of a cut for a while."""

    def act(stage: Stage, fleet: Fleet, marks: Marks) -> bool:
        stage.play(_acknowledged_more(stage, 8))
        assert fleet.network is not None
        lost = _leader(stage)
        fleet.network.cut(lost)
        marks.now(f"leader cut off for {CUT_S:.0f} s")
        stage.play(_after(CUT_S))
        fleet.network.mend(lost)
        return stage.play()

    return [Cell("cut-leader", _cell(act, network=True))]

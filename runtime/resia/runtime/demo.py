"""`resia demo`: the whole loop on real data in minutes, with a crash in the middle and two replays at the end.

It pulls the assets, runs W+H on denoising, kills its own trainer with SIGKILL once an update has begun, and checks
what it promised. Nothing is staged: the run is an ordinary one, and what the gate leaves undecided stays so.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from resia.events import AdapterTrained, Fact, Logged, RoundRequested, RunSettings
from resia.replay.digest import digest
from resia.replay.report import Summary, rows, summary
from resia.replay.state import RunState

from . import assets
from .config import checked
from .console import View, controls_table, table
from .reading import load
from .replaying import verify_log
from .session import Session, Watch, launch
from .store import Store
from .supervisor import Died, Supervisor

RUN = "demo"
KILL_ROUND = 1  # the second round of an update: one adapter is stored, the next is being computed
TRAINER = "trainer-1"

SETTINGS: dict[str, Any] = {
    "domain": "denoising",
    "seed": 2,
    "loop": {"mode": "W+H", "patience_h": 1, "patience_w": 1, "max_iterations": 4},
    "selection": {"format_failures_doubles_patience": 1.0},  # one failed edit and the weights have their turn
    "sampling": {"group_size": 6, "shard_size": 36},
    "training": {"rounds": 5, "groups": 2, "group_size": 16},
}


class Result(NamedTuple):
    """The last line on standard output. Scores are mean audited rewards on the sealed test, in [0, 1]."""

    run: str
    baseline: float | None
    champion: float | None
    accepted_edits: int
    rejected: int
    weight_updates: int
    accepted_updates: int
    killed_recovered: bool
    digest_equal: bool
    seconds: float
    events: int


def settings() -> RunSettings:
    """The demo's settings, on as many threads as there are processors, at most four."""
    threads = min(os.cpu_count() or 1, 4)
    return checked({**SETTINGS, "engine": {"threads": threads}})


class Saboteur:
    """Kills the trainer once, in the middle of an update, and sees whether the update was finished all the same."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._supervisor: Supervisor | None = None
        self._killed_in = ""  # the update under way when the trainer was killed
        self._died = False
        self.recovered = False

    def watch(self) -> Watch:
        return Watch(self.fact, self._view.live, self.died, self.started)

    def started(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._view.started(supervisor)

    def died(self, died: Died) -> None:
        self._view.died(died)
        self._died = self._died or (died.worker == TRAINER and died.code == -signal.SIGKILL)

    def fact(self, state: RunState, fact: Logged) -> None:
        """A later round was asked for and has not been trained: now. Then wait for the same update's adapter."""
        self._view.fact(state, fact)
        event = fact.event if isinstance(fact, Fact) else None
        if isinstance(event, RoundRequested) and event.round == KILL_ROUND and not self._killed_in:
            self._strike(event.training)
        if isinstance(event, AdapterTrained) and event.training == self._killed_in:
            self.recovered = self._died

    def _strike(self, training: str) -> None:
        pid = self._supervisor.pid(TRAINER) if self._supervisor else None
        if pid is not None:
            self._killed_in = training
            os.kill(pid, signal.SIGKILL)
            self._view.note(f"killed the trainer (process {pid}) in the middle of an update, on purpose")


async def play(folder: Path, cache: Path | None, fresh: bool) -> tuple[dict[str, Any], int]:
    """The result line and the exit code: 1 when a promise failed."""
    console = Console(stderr=True, markup=False, highlight=False)
    for asset in assets.catalogue():
        assets.pull(asset.name, lambda text: console.print(text), cache)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    store, view = Store(folder), View(RUN, console)
    saboteur = Saboteur(view)
    with view.showing():
        state = await launch(Session(RUN, settings(), store, cache=cache), saboteur.watch())
    equal = await _replay_twice(store, digest(state), console)
    return _conclude(state, saboteur.recovered, equal, time.monotonic() - started, console)


async def _replay_twice(store: Store, live: str, console: Console) -> bool:
    """Fold the log again, twice, from the server; also check every hash and decide everything again."""
    digests = {live}
    for number in (1, 2):
        log = await load(store, RUN)
        digests.add(digest(log.at()))
        console.print(f"replay {number}: {len(log.facts)} events, digest {digest(log.at())[:16]}")
    problems = verify_log(log, store).problems
    for problem in problems:
        console.print(f"event {problem.sequence} ({problem.kind}): {problem.why}")
    return len(digests) == 1 and not problems


def _conclude(
    state: RunState, recovered: bool, equal: bool, seconds: float, console: Console
) -> tuple[dict[str, Any], int]:
    found: Summary = summary(state)
    console.print(table(rows(state), console.width))
    console.print(controls_table(found))
    console.print(f"{found.status}: {found.reason}")
    result = Result(
        RUN,
        _rounded(found.baseline_test),
        _rounded(found.champion_test),
        found.accepted_edits,
        found.rejected,
        found.weight_updates,
        found.accepted_updates,
        recovered,
        equal,
        round(seconds, 1),
        found.events,
    )
    promises = {
        "the run completed": found.status == "completed",
        "a harness edit was accepted": found.accepted_edits > 0,
        "a weight update was completed": found.weight_updates > 0,
        "the killed trainer's update was finished": recovered,
        "both replays gave the same state and every check held": equal,
    }
    for promise, kept in promises.items():
        console.print(f"{'kept  ' if kept else 'BROKEN'} {promise}")
    return result._asdict(), 0 if all(promises.values()) else 1


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

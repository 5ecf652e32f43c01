"""Disturbances other than kills at boundaries: random kills, races, pauses, redelivery, late duplicates."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from histories import ROLES, World
from resia.events import OUTCOMES, Draft, Fact, MessageQuarantined, Skipped, encode
from resia.events.subjects import event_subject
from resia.replay.identity import identity, performed
from resia.runtime.bus import Bus

from .actors import ACK_WAIT_S, Actor
from .cells import CAST, REQUEST, WORLD, Cell, Reference, Void, ended
from .damage import damaged
from .judge import Verdict, acknowledged
from .stage import RUN, Stage
from .strikes import SELF, SERVER, Boundary, Moment, Point, stage_points, struck

RANDOM_RUNS, RANDOM_KILLS = 12, 10
PAUSES_A_RUN = 8
RACES = 4
# Nothing in common with WORLD: other rewards, and failures where it succeeds. Its draft fails too.
CONTRARY = World(
    base=0.1,
    training=0.0,
    draft_fails=True,
    edit_fails=lambda event: event.iteration != 2,
    round_fails=lambda event: not (event.adapter is not None and event.round == 0),
    controls_fail=True,
)
AGREEING = tuple(Actor(role, f"{role}-{n}", WORLD) for role in ROLES for n in (1, 2))
RIVALS = tuple(Actor(role, f"{role}-{n}", world) for role in ROLES for n, world in ((1, WORLD), (2, CONTRARY)))
MEASURING = tuple(actor for actor in RIVALS if actor.name != "meta-2")  # no run goes far when its draft fails


def every(reference: Reference, seed: int, short: bool) -> list[Cell]:
    """All cells but the matrix; in the short form one of each kind."""
    runs = -(-len(reference.boundaries) // PAUSES_A_RUN)
    some = [reference.boundaries[n::runs] for n in range(1 if short else runs)]
    settling = outcomes(reference)
    return [
        *(random_kills(f"random-{n:02d}", seed + n) for n in range(1 if short else RANDOM_RUNS)),
        *(paused_and_woken(f"paused-{n}", chosen, AGREEING, True) for n, chosen in enumerate(some)),
        paused_and_woken("rivals-draft", settling[:1], RIVALS, False),
        *(
            paused_and_woken(f"rivals-{n}", settling[n::runs], MEASURING, False)
            for n in range(1, 2 if short else runs + 1)
        ),
        *(race(f"race-{n}") for n in range(1 if short else RACES)),
        redelivered("redelivered"),
        foreign("foreign"),
        late_duplicates("late-duplicates"),
        *damaged(seed, short),
    ]


def random_kills(name: str, seed: int) -> Cell:
    """Workers and the server killed at moments that no event names."""

    def play(folder: Path, reference: Reference) -> Verdict:
        rng, kills, due = random.Random(seed), 0, time.monotonic()

        def tick() -> bool:
            nonlocal kills, due
            if kills < RANDOM_KILLS and time.monotonic() > due:
                target = rng.choice([SERVER, *(actor.name for actor in CAST)])
                kills += stage.kill(target)
                due = time.monotonic() + rng.uniform(0.0, 2 * reference.seconds / RANDOM_KILLS)
            return False

        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            return ended(stage, stage.play(tick), reference.digest, kills)

    return Cell(name, play)


def outcomes(reference: Reference) -> list[Boundary]:
    """Boundaries that end with the outcome of a request, the draft first."""
    by_id = {fact.envelope.id: fact for fact in reference.log}
    return [b for b in reference.boundaries if isinstance(by_id[b.ids[-1]].event, OUTCOMES)]


def paused_and_woken(name: str, boundaries: Sequence[Boundary], cast: Sequence[Actor], agree: bool) -> Cell:
    """Two workers a role: who comes first to a boundary stops past its deadline, the other does the work, and then
    the first goes on and appends too late. Workers that do not agree: whatever stands first stands alone."""
    points = [Point(n, b.ids[0], "before", SELF, signal.SIGSTOP) for n, b in enumerate(boundaries)]

    def play(folder: Path, reference: Reference) -> Verdict:
        asleep = {point.number: point for point in points}

        def wake() -> bool:
            for number, point in list(asleep.items()):
                path = folder / f"struck-{number}"
                if path.exists() and path.read_text() and _stands(folder, point.event):
                    os.kill(int(path.read_text()), signal.SIGCONT)
                    del asleep[number]
            return False

        with Stage(folder, cast, points) as stage:
            stage.begin(REQUEST)
            found = ended(stage, stage.play(wake), reference.digest if agree else None, 0)
        if struck(folder) and not any(entry.already for entry in acknowledged(folder)):
            raise Void("nobody appended too late")
        return found

    return Cell(name, play)


def _stands(folder: Path, event: str) -> bool:
    return any(event in entry.ids for entry in acknowledged(folder))


def race(name: str) -> Cell:
    """Two workers a role whose outcomes disagree, undisturbed and with every event handed out twice."""
    cast = tuple(actor._replace(forgets=True) for actor in MEASURING)

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, cast) as stage:
            stage.begin(REQUEST)
            return ended(stage, stage.play(), None, 0)

    return Cell(name, play)


def redelivered(name: str) -> Cell:
    """Every event is handed out at least twice: the first acknowledgement of each is not sent."""
    cast = tuple(actor._replace(forgets=True) for actor in CAST)

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, cast) as stage:
            stage.begin(REQUEST)
            return ended(stage, stage.play(), reference.digest, 0)

    return Cell(name, play)


def foreign(name: str) -> Cell:
    """Messages that are no events, while who quarantines them and the server are killed before and after it does."""
    disturbances: tuple[tuple[Moment, str], ...] = (
        ("before", SELF),
        ("after", SELF),
        ("before", SERVER),
        ("after", SERVER),
    )

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            for number in range(len(disturbances)):
                subject = event_subject(RUN, "task", "shard-sampled", f"foreign{number}")
                stage.ask(lambda bus, subject=subject: bus.publish(subject, b'{"not": "an event"}'))
            skipped = [found for found in stage.log() if isinstance(found, Skipped)]
            points = [
                Point(n, _quarantine_id(message), moment, target)
                for n, (message, (moment, target)) in enumerate(zip(skipped, disturbances, strict=True))
            ]
            stage_points(folder, points)
            finished = stage.play()
            found = ended(stage, finished, reference.digest, struck(folder))
            return found + Verdict(missed=len(points) - struck(folder))

    return Cell(name, play)


def _quarantine_id(message: Skipped) -> str:
    event = MessageQuarantined(message.sequence, message.leaf, message.why)
    return identity(RUN, None, event, "feedback.quarantine", 0)


def late_duplicates(name: str) -> Cell:
    """Every batch appended again when the run is over, before and after the server was killed."""

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            finished = stage.play()
            before, accepted = stage.log(), 0
            for kills in (0, 1):
                if kills:
                    stage.kill_server()
                    stage.revive_server()
                time.sleep(2 * ACK_WAIT_S)  # longer than the server remembers message ids
                for role in ROLES:
                    accepted += stage.ask(lambda bus, role=role: _again(bus, role, before), role)
            found = ended(stage, finished, reference.digest, 1)
            grown = accepted + len(stage.log()) - len(before)
            return found + Verdict(duplicated=grown, notes=("duplicated: appended again",) if grown else ())

    return Cell(name, play)


async def _again(bus: Bus, role: str, log: Sequence[Fact]) -> int:
    """How many events of `role` were taken a second time, one by one."""
    accepted = 0
    for fact in log:
        if fact.envelope.producer.role != role:
            continue
        outcome = isinstance(fact.event, OUTCOMES) and _was_performed(fact, log)
        subject = event_subject(RUN, role, fact.envelope.type, fact.envelope.id)
        draft = Draft(fact.envelope.id, subject, encode(fact.envelope, fact.event), fact.event, outcome)
        accepted += not (await bus.append(RUN, [draft])).already
    return accepted


def _was_performed(fact: Fact, log: Sequence[Fact]) -> bool:
    """Whether its id is that of an outcome: a rule may give up a training as well."""
    cause = next((f for f in log if f.envelope.id == fact.envelope.cause), None)
    if cause is None:
        return False
    handler = performed(fact.envelope.producer.role, cause.envelope.type)
    return identity(RUN, fact.envelope.cause, fact.event, handler, 0) == fact.envelope.id

"""What a disturbed run is judged by: its final log against the undisturbed run and against what was acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from histories import DECIDERS
from resia.events import (
    OUTCOMES,
    AdapterTrained,
    DecisionMade,
    EvaluationCompleted,
    Fact,
    Logged,
    RolloutFailed,
    RolloutRecorded,
    RoundRequested,
    RunCompleted,
    RunFailed,
    StepTrained,
    TestUnsealed,
)
from resia.events.errors import BlobError
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.verify import blobs_named, check
from resia.runtime.blobs import DirectoryBlobs

from .actors import Acknowledged


class Stall(msgspec.Struct, frozen=True):
    """How long nothing was acknowledged after something was done to a cluster."""

    what: str
    seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """Counts over one run or many; `notes` say what was found."""

    kills: int = 0
    divergent: int = 0
    lost: int = 0
    duplicated: int = 0
    stuck: int = 0
    missed: int = 0  # points that the run did not come to
    stalls: tuple[Stall, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Verdict) -> Verdict:
        counts = {name: getattr(self, name) + getattr(other, name) for name in (*COUNTS, "missed")}
        return Verdict(**counts, stalls=self.stalls + other.stalls, notes=self.notes + other.notes)

    @property
    def faults(self) -> int:
        return self.divergent + self.lost + self.duplicated + self.stuck


COUNTS = ("kills", "divergent", "lost", "duplicated", "stuck")


def judge(log: Sequence[Logged], folder: Path, expected: str | None) -> Verdict:
    """`expected` is the digest of the undisturbed run; None where outcomes disagree and any of them may stand."""
    diverged = [f"event {p.sequence} ({p.kind}): {p.why}" for p in check(log, DECIDERS).problems]
    if expected is not None and (found := digest(fold(log))) != expected:
        diverged.append(f"digest {found[:12]}, undisturbed {expected[:12]}")
    missing = [*lost(log, acknowledged(folder)), *lost_blobs(log, DirectoryBlobs(folder / "blobs"))]
    twice = duplicated(log)
    notes = (
        *(f"divergent: {why}" for why in diverged),
        *(f"lost: {why}" for why in missing),
        *(f"duplicated: {why}" for why in twice),
    )
    return Verdict(divergent=int(bool(diverged)), lost=len(missing), duplicated=len(twice), notes=notes)


def acknowledged(folder: Path) -> list[Acknowledged]:
    """Everything that workers were told is in the log. A line that its writer's death cut short was not noted yet."""
    lines = (line for path in sorted(folder.glob("*.acknowledged")) for line in path.read_bytes().splitlines(True))
    return [msgspec.json.decode(line, type=Acknowledged) for line in lines if line.endswith(b"\n")]


def lost(log: Sequence[Logged], told: Iterable[Acknowledged]) -> list[str]:
    """Acknowledged events that do not stand under the number that was acknowledged."""
    at = {fact.sequence: fact.envelope.id for fact in log if isinstance(fact, Fact)}
    missing: list[str] = []
    for entry in (entry for entry in told if not entry.already):
        for number, id_ in enumerate(entry.ids, entry.sequence - len(entry.ids) + 1):
            if at.get(number) != id_:
                missing.append(f"event {number} ({id_}) of {entry.role}")
    return missing


def lost_blobs(log: Iterable[Logged], blobs: DirectoryBlobs) -> list[str]:
    """Blobs that a fact names and that are not there: they are stored before it."""
    named = {blob.digest: (blob, f.sequence) for f in log if isinstance(f, Fact) for blob in blobs_named(f.event)}
    missing: list[str] = []
    for blob, sequence in named.values():
        try:
            blobs.get(blob)
        except BlobError as cause:
            missing.append(f"blob of event {sequence}: {cause}")
    return missing


def duplicated(log: Iterable[Logged]) -> list[str]:
    """Ids, outcomes of one request and effects that stand more than once."""
    counts: Counter[tuple[object, ...]] = Counter()
    for fact in log:
        if isinstance(fact, Fact):
            counts.update(_meanings(fact))
    return [f"{n} times {' '.join(map(str, key))}" for key, n in counts.items() if n > 1]


def _meanings(fact: Fact) -> list[tuple[object, ...]]:
    """What may stand only once of a fact: its id, and what it says was done."""
    event = fact.event
    keys: list[tuple[object, ...]] = [("id", fact.envelope.id)]
    if isinstance(event, OUTCOMES):
        keys.append(("outcome of", fact.envelope.cause))
    match event:
        case RolloutRecorded():
            keys.append(("rollout", event.evaluation, event.round, event.split, event.item, event.index))
        case RolloutFailed():  # once a request: what was lost is asked for again
            keys.append(("lost rollout", fact.envelope.cause, event.split, event.item, event.index))
        case StepTrained():
            keys.append(("step", event.training, event.round, event.step))
        case RoundRequested():
            keys.append(("round asked", event.training, event.round))
        case EvaluationCompleted():
            keys.append(("evaluation closed", event.request))
        case AdapterTrained():
            keys.append(("adapter of", event.training))
        case DecisionMade():
            keys.append(("decision", event.iteration))
        case TestUnsealed() | RunCompleted() | RunFailed():
            keys.append((type(event).__name__,))
        case _:
            pass
    return keys

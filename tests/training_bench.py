"""A recorded champion, a training of it, and the trainer's `perform` on a tiny policy, with a log in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from scripted import Tape
from trainer_given import SETTINGS, random_rollouts, tiny_policy

from given import BLOB
from histories import MANIFEST, run_request
from resia.events import (
    Candidate,
    EvaluationRequested,
    Event,
    Fact,
    RolloutRecorded,
    RoundRequested,
    Slot,
    TrainingRequested,
)
from resia.replay.state import RunState
from resia.runtime.blobs import DirectoryBlobs
from resia.trainers.performing import TrainerPorts, train


class Bench:
    """`policy` is trained on what `rollouts` (random ones by default) were recorded for the champion's evaluation."""

    def __init__(self, folder: Path, algorithm="grpo", settings=SETTINGS, champion=True, rollouts=None, run="tape"):
        self.blobs, self.tape = DirectoryBlobs(folder), Tape(run)
        self.policy = tiny_policy(layers=1)
        self.champion = self.blobs.put(self.policy.adapter_bytes()) if champion else None
        self.algorithm, self.settings = algorithm, settings
        self.manifest, self.ticks = MANIFEST, 0
        self.tape.add(run_request())
        (asked,) = self.tape.add(EvaluationRequested("candidate", 0, Candidate(BLOB), (Slot("search", "s", 0, 0),)))
        self.evaluation = asked.envelope.id
        held = random_rollouts(3) if rollouts is None else rollouts
        facts = self.tape.add(*(self._recorded(n, r) for n, r in enumerate(held)))
        self.rollouts = tuple(sorted(f.envelope.id for f in facts))
        request = TrainingRequested(1, algorithm, settings, BLOB, self.champion, self.evaluation, 7)
        (self.training,) = self.tape.add(request)

    def _recorded(self, index: int, r) -> RolloutRecorded:
        return RolloutRecorded(
            self.evaluation, "candidate", 0, "search", r.group, index, index, False, r.reward, r.success, None, "", {},
            "", (r.reward,), 1, 1, self.blobs.put(r.trajectory.encoded()),
        )  # fmt: skip

    def ask(self, number=0, adapter=None, optimizer=None, steps=2) -> Fact:
        """A round is asked for."""
        id_ = self.training.envelope.id
        event = RoundRequested(id_, self.algorithm, number, steps, self.rollouts, adapter, optimizer, 7)
        (fact,) = self.tape.add(event)
        return fact

    def perform(self, fact: Fact, change: Callable[[RunState], RunState] = lambda state: state) -> Iterator[Any]:
        """The batches of events that performing gives on the log's state as `change` leaves it."""
        return train(change(self.tape.state), fact, self.ports())

    def ports(self) -> TrainerPorts:
        return TrainerPorts(lambda _: self.policy, lambda: self.manifest, self.blobs, self._clock, lambda _: None)

    def _clock(self) -> float:
        self.ticks += 1  # twice a step that is computed
        return 0.0

    def round(self, number=0, adapter=None, optimizer=None, steps=2) -> list[Event]:
        """The facts of a round."""
        return [e for events in self.perform(self.ask(number, adapter, optimizer, steps)) for e in events]

    def with_rollout(self, state: RunState, **changes: Any) -> RunState:
        """The state where the first of the round's rollouts is another."""
        found = state.evaluations[self.evaluation]
        other = replace(found.rollouts[self.rollouts[0]], **changes)
        held = replace(found, rollouts=found.rollouts.set(self.rollouts[0], other))
        return replace(state, evaluations=state.evaluations.set(self.evaluation, held))

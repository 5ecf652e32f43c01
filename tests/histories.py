"""Whole runs in memory: the real deciders, invented outcomes of `perform`, ids as the worker derives them.

`play` appends, folds and decides until nothing is left to do. A `World` says how good candidates are and what breaks.
`python tests/histories.py FILE.jsonl` writes a golden log and, beside it, the digest of its state.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from resia.agents import feedback, taskwork
from resia.events import (
    Blob,
    Candidate,
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    ControlScore,
    DecisionMade,
    Draft,
    DraftFailed,
    EditFailed,
    EditRequested,
    Event,
    Fact,
    Harness,
    HarnessDrafted,
    HarnessEdited,
    LoopSettings,
    Manifest,
    Perturbation,
    RetryPolicy,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    RoundRequested,
    RoundTrained,
    RunRequested,
    RunSettings,
    SamplingSettings,
    ShardSampled,
    Slot,
    Split,
    StepTrained,
    SystemPrompt,
    TrainingFailed,
    TrainingSettings,
    decode,
    decode_harness,
)
from resia.events.ids import seed_for, sha256
from resia.replay.digest import digest
from resia.replay.fold import evolve
from resia.replay.identity import decided, performed
from resia.replay.redeciding import Decide
from resia.replay.state import RunState
from resia.runtime.worker import Clerk
from resia.trainers import decider

DECIDERS: Mapping[str, Decide] = {
    "task": taskwork.decide,
    "feedback": feedback.decide,
    "trainer": decider.decide,
}
DECIDES: Mapping[str, tuple[type[Event], ...]] = {
    "task": taskwork.DECIDES,
    "feedback": feedback.DECIDES,
    "trainer": decider.DECIDES,
}
PERFORMS: Mapping[str, tuple[type[Event], ...]] = {
    "meta": (RunRequested,),
    "task": (RolloutsRequested, ControlRequested),
    "feedback": (EditRequested,),
    "trainer": (RoundRequested,),
}
ROLES = ("meta", "task", "feedback", "trainer")
SPLITS: tuple[Split, ...] = ("search", "validation", "test")
POLICY = RetryPolicy(temperature=1.0, max_new_tokens=32, attempts=1, stop=("\n",))
MANIFEST = Manifest("tiny", "m" * 64, "float32", 1, "x86-64", "0", "none")
OPERATORS = {
    "demonstrate-neutral": 0.0,
    "demonstrate-best": 0.15,
    "format-contract": 0.0,
    "retry-unparsed": -0.2,
    "longer-answers": 0.0,
}


class World(NamedTuple):
    """What candidates are worth: reward = `base` + gains of the edits + `training` a weight update + noise.

    On the search split each edit gains `overfit` more. Under a perturbation a share `holds` of the gains is left.
    """

    base: float = 0.4
    operators: Mapping[str, float] = OPERATORS
    training: float = 0.1
    noise: float = 0.1
    overfit: float = 0.0
    holds: float = 1.0
    draft_fails: bool = False
    edit_fails: Callable[[EditRequested], bool] = lambda _: False
    round_fails: Callable[[RoundRequested], bool] = lambda _: False
    slot_fails: Callable[[RolloutsRequested, Slot], bool] = lambda _, __: False
    controls_fail: bool = False


WORLD = World()


class History(NamedTuple):
    """A run's log as stored (subject, bytes), as facts, and folded."""

    records: tuple[tuple[str, bytes], ...]
    facts: tuple[Fact, ...]
    state: RunState
    blobs: Mapping[str, bytes]

    def of(self, *types: type[Event]) -> list[Any]:
        return [fact.event for fact in self.facts if isinstance(fact.event, types)]

    def harness(self, digest: str) -> Harness:
        return decode_harness(self.blobs[digest])

    @property
    def actions(self) -> list[str]:
        return [decision.action for decision in self.of(DecisionMade)]

    @property
    def outcomes(self) -> list[str]:
        return [trial.outcome for trial in self.state.trials]


def run_request(
    *,
    items: tuple[int, int, int] = (3, 12, 2),
    group_size: int = 4,
    shard_size: int = 7,
    seed: int = 0,
    perturbations: tuple[Perturbation, ...] = (),
    **loop: Any,
) -> RunRequested:
    """A small run: items by split, rollouts a search item, perturbations offered, and any field of LoopSettings."""
    settings = RunSettings(
        seed=seed,
        loop=LoopSettings(**loop),
        sampling=SamplingSettings(group_size=group_size, shard_size=shard_size),
        training=TrainingSettings(rounds=2, groups=2, group_size=4, bon_rounds=2, bon_steps=4),
    )
    names = {
        split: tuple(f"{split[0]}{n:02d}" for n in range(count)) for split, count in zip(SPLITS, items, strict=True)
    }
    built = ("grpo", "best_of_n", "reinforce_kl")
    return RunRequested(settings, settings.digest(), "d" * 64, "m" * 64, names, built, perturbations=perturbations)


class _Performer:
    """Outcomes of `perform`, all from the request and the world."""

    def __init__(self, world: World, blobs: Mapping[str, bytes]) -> None:
        self.world = world
        self.blobs = dict(blobs)

    def __call__(self, state: RunState, fact: Fact) -> Iterator[list[Event]]:
        event, id_ = fact.event, fact.envelope.id
        match event:
            case RunRequested(parent=None):
                yield [self._drafted()]
            case EditRequested():
                yield [self._edited(id_, event)]
            case RolloutsRequested():
                yield self._sampled(state, id_, event)
            case RoundRequested():
                yield from self._trained(state, id_, event)
            case ControlRequested():
                yield [self._controls(id_, event)]

    def _put(self, data: bytes) -> Blob:
        blob = Blob(sha256(data), len(data))
        self.blobs[blob.digest] = data
        return blob

    def _left(self, harness: Harness) -> tuple[str, ...]:
        return tuple(name for name in self.world.operators if name not in harness.system_prompt.text)

    def _drafted(self) -> Event:
        if self.world.draft_fails:
            return DraftFailed("the store is full")
        harness = Harness(SystemPrompt("Answer."), "def dispatch(): ...", POLICY, "def extract(): ...")
        parts = harness.component_digests()
        return HarnessDrafted(self._put(harness.encoded()), parts, "operators", "first", self._left(harness))

    def _edited(self, request: str, event: EditRequested) -> Event:
        if self.world.edit_fails(event):
            return EditFailed(request, event.iteration, event.operators, "no operator changes this harness")
        parent, name = decode_harness(self.blobs[event.parent.digest]), event.operators[0]
        prompt = SystemPrompt(f"{parent.system_prompt.text}\n{name}")
        harness = msgspec.structs.replace(parent, system_prompt=prompt)
        blob, parts = self._put(harness.encoded()), harness.component_digests()
        return HarnessEdited(
            request, event.iteration, blob, event.parent, "system_prompt", parts, name, "why", self._left(harness)
        )

    def _skill(self, candidate: Candidate, split: Split, holds: float) -> float:
        edits = decode_harness(self.blobs[candidate.harness.digest]).system_prompt.text.splitlines()[1:]
        updates = self.blobs[candidate.adapter.digest].count(b"update") if candidate.adapter else 0
        gains = sum(self.world.operators[name] for name in edits) + self.world.training * updates
        return self.world.base + gains * holds + (self.world.overfit * len(edits) if split == "search" else 0.0)

    def _reward(self, candidate: Candidate, slot: Slot) -> float:
        adapter = candidate.adapter.digest if candidate.adapter else ""
        drawn = seed_for(slot.seed, "noise", candidate.harness.digest, adapter) / 2**63
        skill = self._skill(candidate, slot.split, self.world.holds if slot.probe else 1.0)
        return round(min(max(skill + self.world.noise * (2 * drawn - 1), 0.0), 1.0), 2)

    def _sampled(self, state: RunState, request: str, event: RolloutsRequested) -> list[Event]:
        made: list[Event] = []
        known: set[tuple[str, str]] = set(state.scores)
        for slot in event.slots:
            if self.world.slot_fails(event, slot):
                about = (event.evaluation, event.purpose, event.round, slot.split, slot.item, slot.index)
                made.append(RolloutFailed(*about, "the engine is gone"))
                continue
            rollout = self._rollout(event, slot, known)
            known.add((slot.item, rollout.answer))
            made.append(rollout)
        failed = sum(isinstance(x, RolloutFailed) for x in made)
        shard = (event.shard, event.shards, event.round, len(made) - failed, failed)
        tokens = (20 * (len(made) - failed), 10 * (len(made) - failed))
        about = (request, event.evaluation, event.purpose, *shard, *tokens, 0.25, MANIFEST)
        return [*made, ShardSampled(*about, event.retry)]

    def _rollout(self, event: RolloutsRequested, slot: Slot, known: set[tuple[str, str]]) -> RolloutRecorded:
        reward = self._reward(event.candidate, slot)
        answer = f"reward={reward}"
        return RolloutRecorded(
            evaluation=event.evaluation,
            purpose=event.purpose,
            round=event.round,
            split=slot.split,
            item=slot.item,
            index=slot.index,
            seed=slot.seed,
            greedy=slot.greedy,
            reward=reward,
            success=reward > 0.5,
            failure=None,
            detail="",
            metrics={"score": reward},
            answer=answer,
            step_rewards=(reward,),
            prompt_tokens=20,
            completion_tokens=10,
            trajectory=self._put(f"{slot.item} {slot.seed} {answer}".encode()),
            reused=(slot.item, answer) in known,
            probe=slot.probe,
        )

    def _trained(self, state: RunState, request: str, event: RoundRequested) -> Iterator[list[Event]]:
        training = state.trainings[event.training].request
        for step in range(event.steps):
            yield [StepTrained(event.training, event.round, step, 0.5, 0.01, 1.0, 0.0, 1.0, 1e-4, 30, 99.0)]
        if self.world.round_fails(event):
            yield [TrainingFailed(event.training, training.iteration, event.algorithm, event.round, 0, "not finite")]
            return
        before = self.blobs[event.adapter.digest] if event.adapter else b""
        # One mark an update, whatever the rounds: `_skill` counts them.
        mark = b"update" if event.round == 0 else b"round"
        blob = self._put(b"%b %b %d %d" % (before, mark, event.seed, event.round))
        optimizer = self._put(b"optimizer %d" % event.seed)
        counts = (event.steps, len(event.rollouts), 0, 0.5, 30 * event.steps)
        yield [RoundTrained(request, event.training, event.algorithm, event.round, blob, optimizer, *counts, MANIFEST)]

    def _controls(self, request: str, event: ControlRequested) -> Event:
        if self.world.controls_fail:
            return ControlFailed(request, "the data are gone")
        found = {"budget": float(event.budget)}
        scores = (ControlScore("random-search", split, 0.5, 2, found) for split in SPLITS)
        return ControlMeasured(request, tuple(scores))


class _Log:
    """An append-only log with the bus's rules: one event a subject for ever, batches whole, decisions fenced."""

    def __init__(self, origin: RunState) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.facts: list[Fact] = []
        self.state = origin
        self._subjects: set[str] = set()

    def append(self, drafts: Sequence[Draft]) -> list[Fact]:
        if any(draft.subject in self._subjects for draft in drafts):
            return []
        appended: list[Fact] = []
        for draft in drafts:
            self._subjects.add(draft.subject)
            self.records.append((draft.subject, draft.data))
            fact = decode(len(self.records), draft.subject, draft.data)
            self.facts.append(fact)
            self.state = evolve(self.state, fact)
            appended.append(fact)
        return appended


def play(
    request: RunRequested,
    world: World = WORLD,
    *,
    run: str = "scripted",
    worker: str = "w1",
    order: int | None = None,
    twice: bool = False,
    clock: float = 1.0,
    deciders: Mapping[str, Decide] = DECIDERS,
    limit: int = 20_000,
    origin: RunState | None = None,
    blobs: Mapping[str, bytes] | None = None,
) -> History:
    """Play a run to its end; a fork begins with `origin` and its parent's `blobs`.

    `order` seeds a random interleaving of the roles' work; `twice` hands all of it out twice.
    Raises AssertionError when more than `limit` events are appended.
    """
    log, performer, ticks = _Log(origin or RunState()), _Performer(world, blobs or {}), itertools.count()
    clerks = {role: Clerk(run, role, worker, "1.0", lambda: clock + next(ticks)) for role in (*ROLES, "user")}
    rng = random.Random(order)
    todo = _work(log.append([clerks["user"].genesis(request)]), twice)
    while todo:
        role, fact = todo.pop(rng.randrange(len(todo)) if order is not None else 0)
        if log.state.ending is None:
            todo += _work(_handle(log, clerks[role], role, fact, performer, deciders), twice)
        assert len(log.records) < limit, "the run does not end"
    return History(tuple(log.records), tuple(log.facts), log.state, performer.blobs)


def _work(facts: Sequence[Fact], twice: bool) -> list[tuple[str, Fact]]:
    served = [
        (role, fact)
        for fact in facts
        for role in ROLES
        if isinstance(fact.event, (*DECIDES.get(role, ()), *PERFORMS.get(role, ())))
    ]
    return served * 2 if twice else served


def _handle(
    log: _Log, clerk: Clerk, role: str, fact: Fact, performer: _Performer, deciders: Mapping[str, Decide]
) -> list[Fact]:
    appended: list[Fact] = []
    basis, kind = log.state.sequence, fact.envelope.type
    if isinstance(fact.event, DECIDES.get(role, ())) and (events := list(deciders[role](log.state, fact))):
        appended += log.append(clerk.drafts(fact, basis, events, decided(role, kind)))
    if isinstance(fact.event, PERFORMS.get(role, ())) and fact.envelope.id not in log.state.settled:
        state, done = log.state, 0
        for batch in performer(state, fact):
            appended += log.append(clerk.drafts(fact, state.sequence, batch, performed(role, kind), done))
            done += len(batch)
    return appended


def decode_all(records: Sequence[tuple[str, bytes]]) -> list[Fact]:
    return [decode(sequence, subject, data) for sequence, (subject, data) in enumerate(records, 1)]


class GoldenLine(msgspec.Struct, frozen=True):
    """One stored message: its subject and its bytes as they were."""

    subject: str
    data: msgspec.Raw


def write_golden(path: Path, records: Sequence[tuple[str, bytes]]) -> None:
    lines = [msgspec.json.encode(GoldenLine(subject, msgspec.Raw(data))) for subject, data in records]
    path.write_bytes(b"\n".join(lines) + b"\n")


def read_golden(path: Path) -> list[tuple[str, bytes]]:
    lines = (msgspec.json.decode(line, type=GoldenLine) for line in path.read_bytes().splitlines())
    return [(line.subject, bytes(line.data)) for line in lines]


GOLDEN = World(
    edit_fails=lambda event: event.iteration == 2,
    training=0.3,
    round_fails=lambda event: event.adapter is not None and event.round == 0,
    slot_fails=lambda event, slot: event.purpose == "candidate" and slot.item == "s00" and slot.index == 1,
)


def golden_history(run: str = "golden") -> History:
    """Both levers, an acceptance of each, a failed edit and a failed training, a lost rollout, and the test."""
    return play(run_request(group_size=4, patience_h=2, max_iterations=6), GOLDEN, run=run)


if __name__ == "__main__":
    history, path = golden_history(), Path(sys.argv[1])
    write_golden(path, history.records)
    path.with_suffix(".digest").write_text(digest(history.state) + "\n")

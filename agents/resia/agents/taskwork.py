"""The Task-Agent's rules: what is asked of which candidate, in which shards, and when an evaluation is closed.

Pure. The sampling itself is in `rollout`; whatever was sampled comes back here as facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from resia.events import (
    AdapterTrained,
    Candidate,
    ControlRequested,
    EvaluationCompleted,
    EvaluationRequested,
    Event,
    Fact,
    HarnessDrafted,
    HarnessEdited,
    Purpose,
    RolloutRecorded,
    RolloutsRequested,
    RunRequested,
    ShardSampled,
    Slot,
    Split,
    SplitScore,
    TestUnsealed,
)
from resia.events.ids import seed_for
from resia.replay.state import Evaluation, RunState

DECIDES = (HarnessDrafted, HarnessEdited, AdapterTrained, EvaluationRequested, ShardSampled, TestUnsealed)
WEAK, SOLVED = "weak", "solved"


def decide(state: RunState, fact: Fact) -> list[Event]:
    """What follows from a new candidate, a request for an evaluation, or the end of a shard."""
    request = state.request
    if request is None:
        return []
    event = fact.event
    match event:
        case HarnessDrafted():
            return [_measure(request, "candidate", 0, Candidate(event.harness))]
        case HarnessEdited():
            adapter = state.champion.candidate.adapter if state.champion else None
            return [_measure(request, "candidate", event.iteration, Candidate(event.harness, adapter))]
        case AdapterTrained():
            harness = state.trainings[event.training].request.harness
            return [_measure(request, "candidate", event.iteration, Candidate(harness, event.adapter))]
        case EvaluationRequested():
            return list(_shards(fact.envelope.id, event, request.settings.sampling.shard_size))
        case ShardSampled():
            return _again(state, request, event) or _close(state, request, event.evaluation)
        case TestUnsealed():
            return _open_test(state, request, event)
        case _:
            return []


def _measure(request: RunRequested, purpose: Purpose, iteration: int, candidate: Candidate) -> EvaluationRequested:
    """A candidate: G sampled rollouts a search item, and one greedy rollout a search and a validation item, so that
    the two splits can be compared like with like. A test: one greedy rollout a test item."""
    seed, group = request.settings.seed, request.settings.sampling.group_size
    splits: tuple[Split, ...] = ("search", "validation") if purpose == "candidate" else ("test",)
    # Seeds do not depend on the iteration: candidates meet the same random numbers.
    sampled = [
        Slot("search", item, index, seed_for(seed, "rollout", item, index))
        for item in request.items["search"]
        for index in range(group)
        if purpose == "candidate"
    ]
    greedy = [
        Slot(split, item, group, seed_for(seed, "rollout", item, group), greedy=True)
        for split in splits
        for item in request.items[split]
    ]
    return EvaluationRequested(purpose, iteration, candidate, (*sampled, *greedy))


def _shards(evaluation: str, event: EvaluationRequested, size: int) -> Sequence[RolloutsRequested]:
    """Slots in order, greedy ones apart because a batch has one temperature."""
    kinds = [[s for s in event.slots if not s.greedy], [s for s in event.slots if s.greedy]]
    parts = [kind[i : i + size] for kind in kinds for i in range(0, len(kind), size)]
    return [
        RolloutsRequested(evaluation, event.purpose, event.candidate, tuple(part), number, len(parts))
        for number, part in enumerate(parts)
    ]


def _again(state: RunState, request: RunRequested, event: ShardSampled) -> list[Event]:
    """The slots of this shard that infrastructure has just lost, asked for once more while retries are left.

    Each shard's own outcome asks for its own slots, so whoever is second to decide derives the same request."""
    found, retry = state.evaluations.get(event.evaluation), event.retry + 1
    if found is None or found.completed is not None or not event.failed or retry > request.settings.sampling.retries:
        return []
    shards, losses = _shards(found.id, found.request, request.settings.sampling.shard_size), found.losses
    asked = [
        msgspec.structs.replace(shard, slots=lost, retry=retry)
        for shard in shards
        if shard.shard == event.shard
        and (lost := tuple(s for s in shard.slots if losses.get((s.split, s.item, s.index)) == retry))
    ]
    return list(asked)


def _close(state: RunState, request: RunRequested, evaluation: str) -> list[Event]:
    """The end of an evaluation, once every shard is in and no slot is to be asked for again."""
    found = state.evaluations.get(evaluation)
    if found is None or found.completed is not None or not found.all_sampled:
        return []
    if any(times <= request.settings.sampling.retries for times in found.losses.values()):
        return []
    return [close(found)]


def close(found: Evaluation) -> EvaluationCompleted:
    """The closing fact, the same whoever makes it: rollouts sorted by id, scores from them alone."""
    request = found.request
    splits: tuple[Split, ...] = ("search", "validation", "test")
    scores = {split: score for split in splits if (score := _split_score(found, split)) is not None}
    classes = Counter(outcome_class(r) for r in found.rollouts.values() if r.split == "search" and not r.greedy)
    return EvaluationCompleted(
        found.id,
        request.purpose,
        request.iteration,
        request.candidate,
        tuple(sorted(found.rollouts)),
        len(found.losses),
        scores,
        dict(sorted(classes.items())),
    )


def outcome_class(rollout: RolloutRecorded) -> str:
    """The failure class of an invalid answer, else `weak` below the domain's reference or `solved` above it."""
    return rollout.failure or (SOLVED if rollout.success else WEAK)


def item_means(found: Evaluation, split: Split, greedy: bool = True) -> dict[str, float]:
    """Mean reward of each item's greedy (or sampled) rollouts; an item is absent when infrastructure lost them all."""
    held: dict[str, list[float]] = {}
    for rollout in found.rollouts.values():
        if rollout.split == split and rollout.greedy == greedy and rollout.probe is None:
            held.setdefault(rollout.item, []).append(rollout.reward)
    # Sorted sums: floating-point addition must not depend on the order in which rollouts arrived.
    return {item: sum(sorted(rewards)) / len(rewards) for item, rewards in sorted(held.items())}


def _split_score(found: Evaluation, split: Split) -> SplitScore | None:
    """Search counts its sampled rollouts, validation and test their greedy ones."""
    greedy = split != "search"
    slots = (slot for slot in found.request.slots if slot.probe is None)
    asked = sum(slot.split == split and slot.greedy == greedy for slot in slots)
    rollouts = [r for r in found.rollouts.values() if r.split == split and r.greedy == greedy and r.probe is None]
    if not asked or not rollouts:
        return None
    means = item_means(found, split, greedy)
    return SplitScore(
        items=len(means),
        rollouts=len(rollouts),
        mean=sum(means.values()) / len(means),
        successes=sum(r.success for r in rollouts),
        coverage=len(rollouts) / asked,
        distinct_answers=len({r.answer for r in rollouts if r.answer}),
    )


def _open_test(state: RunState, request: RunRequested, event: TestUnsealed) -> list[Event]:
    """Champion and generation 0 on the sealed items, once, and the controls at the run's own budget of rollouts."""
    iteration, seed = state.iteration, request.settings.seed
    asked: list[Event] = [_measure(request, "test", iteration, event.champion)]
    if event.baseline != event.champion:
        asked.append(_measure(request, "baseline", iteration, event.baseline))
    return [*asked, ControlRequested(max(state.ledger.rollouts, 1), seed_for(seed, "controls"))]

"""What runs of a store have measured: a rollout's tokens, a model's speed, and how often a mode pulls its levers.

A clock's words are read here, for a person who plans; no rule sees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from resia.events import DecisionMade, Fact, RunCompleted, RunRequested, RunSettings, ShardSampled, StepTrained

from .needs import Levers, Size
from .protocol import IMPORTING, REMOVED
from .store import Store, opened


class Past(NamedTuple):
    """Sums over past runs. Speeds count prompt and completion tokens a second of the shard's or step's own time."""

    runs: int = 0  # of this domain and model, with rollouts
    rollouts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sampled_tokens: int = 0  # of this model, whatever the domain
    sampling_s: float = 0.0
    trained_tokens: int = 0
    training_s: float = 0.0
    ended: int = 0  # of this domain and mode
    edits: int = 0
    trainings: int = 0

    def plus(self, other: Past) -> Past:
        sums: list[Any] = [mine + theirs for mine, theirs in zip(self, other, strict=True)]
        return Past(*sums)

    @property
    def size(self) -> Size | None:
        """Mean tokens of a rollout; None where there was none."""
        return (
            Size(self.prompt_tokens / self.rollouts, self.completion_tokens / self.rollouts) if self.rollouts else None
        )

    @property
    def sampling_speed(self) -> float | None:
        """Tokens a second."""
        return self.sampled_tokens / self.sampling_s if self.sampling_s > 0 else None

    @property
    def training_speed(self) -> float | None:
        return self.trained_tokens / self.training_s if self.training_s > 0 else None

    @property
    def levers(self) -> Levers | None:
        return Levers(self.edits / self.ended, self.trainings / self.ended) if self.ended else None


async def past_of(store: Store, settings: RunSettings) -> Past:
    """What the store's runs say of a run under `settings`; nothing where there is no store."""
    total = Past()
    if store.nats is None and not store.folder.is_dir():
        return total
    async with opened(store) as bus:
        for entry in await bus.runs():
            if entry.status not in (IMPORTING, REMOVED):
                total = total.plus(measured([fact async for fact in bus.read(entry.run)], settings))
    return total


def measured(facts: Iterable[object], settings: RunSettings) -> Past:
    """What one run's own events say."""
    events = [fact.event for fact in facts if isinstance(fact, Fact)]
    request = next((event for event in events if isinstance(event, RunRequested)), None)
    if request is None:
        return Past()
    was, found = request.settings, Past()
    if was.engine == settings.engine:
        found = found.plus(_speed(events))
        if was.domain == settings.domain:
            found = found.plus(_sizes(events))
    alike = was.domain == settings.domain and was.loop.mode == settings.loop.mode and request.parent is None
    if alike and any(isinstance(event, RunCompleted) for event in events):
        actions = [event.action for event in events if isinstance(event, DecisionMade)]
        found = found.plus(Past(ended=1, edits=actions.count("edit_harness"), trainings=actions.count("train_weights")))
    return found


def _speed(events: Iterable[object]) -> Past:
    events = list(events)
    shards = [event for event in events if isinstance(event, ShardSampled)]
    steps = [event for event in events if isinstance(event, StepTrained) and event.tokens_per_s > 0]
    return Past(
        sampled_tokens=sum(shard.prompt_tokens + shard.completion_tokens for shard in shards),
        sampling_s=sum(shard.seconds for shard in shards),
        trained_tokens=sum(step.tokens for step in steps),
        training_s=sum(step.tokens / step.tokens_per_s for step in steps),
    )


def _sizes(events: Iterable[object]) -> Past:
    shards = [event for event in events if isinstance(event, ShardSampled)]
    return Past(
        runs=int(any(shard.rollouts for shard in shards)),
        rollouts=sum(shard.rollouts for shard in shards),
        prompt_tokens=sum(shard.prompt_tokens for shard in shards),
        completion_tokens=sum(shard.completion_tokens for shard in shards),
    )

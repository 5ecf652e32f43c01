"""What a run spends: counted by the fold, in all and by cycle, and worth money at the run's own prices.

A cycle is what follows one decision until the next is taken; cycle 0 drafts and measures generation 0, and the last one
is the sealed test. Pure; knows nothing of clocks.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from resia.events import Action, Price, RunSettings

MILLION = 1_000_000


class Ledger(msgspec.Struct, frozen=True):
    """Spent, in the units that decide things: rollouts and tokens. Proposer tokens are those of whoever edits."""

    rollouts: int = 0
    failed_rollouts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    training_tokens: int = 0
    proposer_prompt_tokens: int = 0
    proposer_completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        proposer = self.proposer_prompt_tokens + self.proposer_completion_tokens
        return self.prompt_tokens + self.completion_tokens + self.training_tokens + proposer

    def plus(self, other: Ledger) -> Ledger:
        """Both together."""
        return Ledger(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Cycle(msgspec.Struct, frozen=True):
    """What one cycle cost. `iteration` is its decision's, 0 before the first; `money` in the run's currency."""

    iteration: int
    action: Action | Literal["draft"]
    rollouts: int
    failed_rollouts: int
    prompt_tokens: int
    completion_tokens: int
    training_tokens: int
    proposer_tokens: int
    tokens: int
    money: float


def proposed(event: msgspec.Struct) -> Ledger:
    """What the proposer of an edit or a draft spent, in tokens: nothing where the event does not say."""
    counts = (getattr(event, name, 0) for name in ("prompt_tokens", "completion_tokens"))
    return Ledger(0, 0, 0, 0, 0, *counts)


def proposer_model(settings: RunSettings) -> str:
    """The name under which the price table has the model that proposes edits."""
    return settings.llm.model if settings.proposer == "llm" else settings.proposer


def money(spent: Ledger, settings: RunSettings) -> float:
    """`spent` at the run's prices, in its currency; a model without a price costs nothing."""
    sampled, proposing = price(settings, settings.engine.model), price(settings, proposer_model(settings))
    parts = (
        spent.prompt_tokens * sampled.prompt,
        spent.completion_tokens * sampled.completion,
        spent.training_tokens * sampled.training,
        spent.proposer_prompt_tokens * proposing.prompt,
        spent.proposer_completion_tokens * proposing.completion,
    )
    return sum(parts) / MILLION


def price(settings: RunSettings, model: str) -> Price:
    return settings.price.models.get(model, Price())


def cycle(iteration: int, action: Action | Literal["draft"], spent: Ledger, settings: RunSettings) -> Cycle:
    """`spent` as one line of a report."""
    return Cycle(
        iteration,
        action,
        spent.rollouts,
        spent.failed_rollouts,
        spent.prompt_tokens,
        spent.completion_tokens,
        spent.training_tokens,
        spent.proposer_prompt_tokens + spent.proposer_completion_tokens,
        spent.tokens,
        money(spent, settings),
    )

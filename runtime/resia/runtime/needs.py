"""How many rollouts and tokens each step of a run asks for: arithmetic over its settings, items and a rollout's size.

Rollouts of an evaluation, of the sealed test and of a training are exact, as the rules ask for them (a training's may
be raised by GRPO's rule: `most`). Tokens are rollouts times a size, so they are as good as that. Pure; loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from resia.agents.episode import chat
from resia.agents.operators import CATALOGUE, SearchView, Seen
from resia.agents.proposing import first_harness
from resia.agents.selection import MAX_GROUP, REINFORCE_GROUP
from resia.domains.base import Domain
from resia.events import Algorithm, Harness, RunSettings, Split
from resia.events.settings import OFF_POLICY
from resia.replay.ledger import Ledger, money
from resia.trainers.decider import plan

TEMPLATE_TOKENS = 32  # that a chat template may put around one message
BYTES_A_TOKEN = 4  # of English text in a byte-pair vocabulary, roughly


class Size(NamedTuple):
    """Tokens of one rollout, all its turns together."""

    prompt: float
    completion: float

    @property
    def tokens(self) -> float:
        return self.prompt + self.completion


class Need(NamedTuple):
    """What a step asks for: rollouts, and tokens by kind."""

    rollouts: float = 0
    prompt: float = 0
    completion: float = 0
    training: float = 0

    @property
    def tokens(self) -> float:
        return self.prompt + self.completion + self.training

    def times(self, number: float) -> Need:
        return Need(*(number * value for value in self))

    def plus(self, other: Need) -> Need:
        return Need(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def cost(self, settings: RunSettings) -> float:
        """In the run's currency."""
        counts = (round(value) for value in (self.prompt, self.completion, self.training))
        return money(Ledger(0, 0, *counts), settings)


def sampled(rollouts: float, size: Size) -> Need:
    return Need(rollouts, rollouts * size.prompt, rollouts * size.completion)


def evaluation(settings: RunSettings, items: Mapping[Split, int], size: Size) -> Need:
    """Measuring one candidate."""
    greedy = items["search"] + items["validation"]
    return sampled(items["search"] * settings.sampling.group_size + greedy, size)


def sealed_test(items: Mapping[Split, int], size: Size) -> Need:
    """The champion and, where it is another, generation 0 beside it."""
    return sampled(2 * items["test"], size)


def training(settings: RunSettings, algorithm: Algorithm, items: Mapping[Split, int], size: Size, most: bool) -> Need:
    """One update without the measurement that follows. `most`: the group size that a rule may raise, at its largest."""
    chosen, cut = settings.training, plan(algorithm, settings.training)
    first = items["search"] * settings.sampling.group_size
    if algorithm in OFF_POLICY:
        rows = min(first, chosen.bon_top if algorithm == "best_of_n" else 2 * chosen.dpo_pairs)
        return Need(training=rows * cut.total * size.tokens)
    fresh = chosen.groups * _group_size(settings, algorithm, most)
    passes = first * cut.steps(0) + fresh * sum(cut.steps(number) for number in range(1, cut.rounds))
    return sampled(fresh * (cut.rounds - 1), size)._replace(training=passes * size.tokens)


def _group_size(settings: RunSettings, algorithm: Algorithm, most: bool) -> int:
    """Fresh rollouts of an item and round."""
    asked = {"grpo": MAX_GROUP if most else settings.sampling.group_size, "reinforce_kl": REINFORCE_GROUP}
    return max(settings.training.group_size, asked.get(algorithm, 0))


def first_size(domain: Domain, most: bool, thought: int = 0) -> Size:
    """A rollout of generation 0 without a tokenizer: `most` counts a token a byte, which none exceeds, and every try;
    otherwise about a token for four bytes, and one try a step. `thought`: tokens before an answer."""
    return _size(first_harness(domain.spec), domain, most, thought)


def widest_size(domain: Domain, thought: int = 0) -> Size:
    """The most that a rollout may take once every operator of the catalogue has added what it can."""
    harness, prompts = first_harness(domain.spec), tuple(item.prompt for item in domain.items("search"))
    longest = max((domain.render(r.answer) for r in domain.spec.references), key=len)
    view = SearchView(prompts, tuple(Seen(str(n), p, longest, 1.0, longest) for n, p in enumerate(prompts)))
    sizes = [_size(harness, domain, True, thought)]
    for _ in range(len(CATALOGUE)):  # an operator may be applied again after others: answers are doubled in length
        for operator in CATALOGUE.values():
            edited = operator.edit(harness, domain, view)
            if _size(edited, domain, True, thought).tokens >= sizes[-1].tokens:
                harness = edited
                sizes.append(_size(harness, domain, True, thought))
    return max(sizes, key=lambda size: size.tokens)


def _size(harness: Harness, domain: Domain, most: bool, thought: int) -> Size:
    """Of the longest item where `most`, otherwise of the mean one."""
    policy, steps = harness.retry_policy, domain.spec.steps
    items = [item.prompt for split in _SPLITS for item in domain.items(split)]
    lengths = [_prompt_tokens(harness, prompt, most) for prompt in items]
    prompt = max(lengths) if most else sum(lengths) / len(lengths)
    # A dialogue's later turns show what went before: an answer, and about as much as an item's prompt says.
    said = policy.max_new_tokens + max(len(text.encode()) for text in items) + 2 * TEMPLATE_TOKENS
    grown = said * (steps - 1) / 2
    tries = policy.attempts if most else 1
    return Size(tries * steps * (prompt + grown), tries * steps * (policy.max_new_tokens + thought))


def _prompt_tokens(harness: Harness, prompt: str, most: bool) -> float:
    messages = chat(harness, prompt)
    size = sum(len(message.content.encode()) for message in messages)
    return size + TEMPLATE_TOKENS * (len(messages) + 1) if most else size / BYTES_A_TOKEN


_SPLITS: tuple[Split, ...] = ("search", "validation", "test")


class Levers(msgspec.Struct, frozen=True):
    """Edits and weight updates of a run."""

    edits: float
    trainings: float


def if_nothing_is_accepted(settings: RunSettings) -> Levers:
    """A run in which every candidate is rejected: each lever until its patience ends."""
    loop = settings.loop
    edits = min(loop.patience_h, loop.max_iterations) if loop.mode in ("H", "W+H") else 0
    trainings = min(loop.patience_w, loop.max_iterations - edits) if loop.mode in ("W", "W+H") else 0
    return Levers(edits, trainings)

"""What an operator is: a typed, pure edit of one component of a harness, from the task spec and the search view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from resia.domains.base import Domain
from resia.events import Component, Harness


class Seen(NamedTuple):
    """One search rollout as a proposer may see it: the item's prompt, the answer and its reward; never gold. `source`
    is the program, where the answer is one and `answer` only its digest."""

    item: str
    prompt: str
    answer: str
    reward: float
    text: str
    source: str = ""


class SearchView(NamedTuple):
    """All that a proposer sees of a run: the search items' prompts and the champion's search rollouts."""

    prompts: tuple[str, ...]
    rollouts: tuple[Seen, ...]


class Operator(NamedTuple):
    """A typed edit. `mends` weighs the outcome classes it is meant for, in [0, 1]; `edit` returns the harness
    unchanged where it has nothing to do."""

    name: str
    component: Component
    mends: Mapping[str, float]
    rationale: str
    edit: Callable[[Harness, Domain, SearchView], Harness]


def with_prompt(harness: Harness, **changes: object) -> Harness:
    return msgspec.structs.replace(harness, system_prompt=msgspec.structs.replace(harness.system_prompt, **changes))


def with_policy(harness: Harness, **changes: object) -> Harness:
    return msgspec.structs.replace(harness, retry_policy=msgspec.structs.replace(harness.retry_policy, **changes))

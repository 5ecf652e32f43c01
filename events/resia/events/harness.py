"""Harness generations: HarnessDrafted | DraftFailed, then EditRequested -> HarnessEdited | EditFailed.

Where a model behind an endpoint was asked, `exchange` is all that was said, and the tokens are what it cost.
"""

from __future__ import annotations

import msgspec

from .blob import Blob
from .harness_value import Component


class HarnessDrafted(msgspec.Struct, frozen=True):
    """Generation 0. `applicable` names the edit operators that would change this harness, as rules read no blobs."""

    harness: Blob
    components: dict[Component, str]
    proposer: str
    rationale: str
    applicable: tuple[str, ...]
    exchange: Blob | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class DraftFailed(msgspec.Struct, frozen=True):
    error: str
    exchange: Blob | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class EditRequested(msgspec.Struct, frozen=True):
    """Edit the champion's harness with the first of `operators` (ranked) that changes it.

    `evaluation` names the evaluation whose search rollouts the proposer may see; `failures` counts classes there.
    `scores` are the operators' where a policy ranked them; empty: the failures alone did. `scorings`: the (answer,
    search item) pairs that a baseline's search for one answer may score.
    """

    iteration: int
    parent: Blob
    operators: tuple[str, ...]
    evaluation: str
    failures: dict[str, int]
    scores: dict[str, float] = {}
    scorings: int = 0


class HarnessEdited(msgspec.Struct, frozen=True):
    """One component of `parent` changed. The digests show which.

    `known` gives the operators before this one that would have made a harness which had been measured with this
    adapter, each with that harness's digest: they were not tried again.
    """

    request: str
    iteration: int
    harness: Blob
    parent: Blob
    component: Component
    components: dict[Component, str]
    operator: str
    rationale: str
    applicable: tuple[str, ...]
    known: dict[str, str] = {}
    exchange: Blob | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class EditFailed(msgspec.Struct, frozen=True):
    """None of `operators` gave a harness to measure. `known`: as in HarnessEdited."""

    request: str
    iteration: int
    operators: tuple[str, ...]
    error: str
    known: dict[str, str] = {}
    exchange: Blob | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

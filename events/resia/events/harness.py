"""Harness generations: HarnessDrafted | DraftFailed, then EditRequested -> HarnessEdited | EditFailed."""

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


class DraftFailed(msgspec.Struct, frozen=True):
    error: str


class EditRequested(msgspec.Struct, frozen=True):
    """Edit the champion's harness with the first of `operators` (ranked) that changes it.

    `evaluation` names the evaluation whose search rollouts the proposer may see; `failures` counts classes there.
    `scorings`: the (answer, search item) pairs that a baseline's search for one answer may score.
    """

    iteration: int
    parent: Blob
    operators: tuple[str, ...]
    evaluation: str
    failures: dict[str, int]
    scorings: int = 0


class HarnessEdited(msgspec.Struct, frozen=True):
    """One component of `parent` changed. The digests show which."""

    request: str
    iteration: int
    harness: Blob
    parent: Blob
    component: Component
    components: dict[Component, str]
    operator: str
    rationale: str
    applicable: tuple[str, ...]


class EditFailed(msgspec.Struct, frozen=True):
    request: str
    iteration: int
    operators: tuple[str, ...]
    error: str

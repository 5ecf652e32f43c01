"""What changed between two candidates of a run: harness text, retry policy, adapters and scores.

A candidate is named by the iteration that measured it (0: the baseline), or `champion`. Harnesses are blobs, so the
caller hands in `harness_of`, from a harness digest to its value. Pure values out; how they are shown is the caller's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import msgspec

from resia.events import (
    COMPONENTS,
    AdapterTrained,
    Algorithm,
    Blob,
    Component,
    Harness,
    HarnessEdited,
    Split,
    SplitScore,
    SystemPrompt,
)
from resia.events.errors import UsageError

from .state import Evaluation, RunState

CHAMPION = "champion"
SPLITS: tuple[Split, ...] = ("search", "validation", "test")
HarnessOf = Callable[[str], Harness]


class TextChange(msgspec.Struct, frozen=True):
    """A changed component as the lines of a unified diff, without line ends."""

    component: Component
    lines: tuple[str, ...]


class FieldChange(msgspec.Struct, frozen=True):
    """A changed field of the retry policy, both values as text."""

    field: str
    before: str
    after: str


class AdapterStep(msgspec.Struct, frozen=True):
    """One weight update in an adapter's descent."""

    digest: str
    algorithm: Algorithm
    iteration: int
    rounds: int
    steps: int


class ScorePair(msgspec.Struct, frozen=True):
    """Mean reward of both candidates on a split (None: not measured), and the share of its rollouts that was scored."""

    split: Split
    before: float | None
    after: float | None
    before_coverage: float | None = None
    after_coverage: float | None = None


class Diff(msgspec.Struct, frozen=True):
    """From the candidate of iteration `before` to that of iteration `after`. Adapters are oldest first."""

    before: int
    after: int
    texts: tuple[TextChange, ...]
    policy: tuple[FieldChange, ...]
    adapters_before: tuple[AdapterStep, ...]
    adapters_after: tuple[AdapterStep, ...]
    scores: tuple[ScorePair, ...]


def diff(state: RunState, a: int | str, b: int | str, harness_of: HarnessOf) -> Diff:
    """Differences from candidate `a` to `b`; raises UsageError for one that the run never measured."""
    before, after = measured(state, a), measured(state, b)
    old, new = (harness_of(e.request.candidate.harness.digest) for e in (before, after))
    names = f"iteration {before.request.iteration}", f"iteration {after.request.iteration}"
    return Diff(
        before.request.iteration,
        after.request.iteration,
        _texts(old, new, *names),
        _policy(old, new),
        adapter_lineage(state, before.request.candidate.adapter),
        adapter_lineage(state, after.request.candidate.adapter),
        tuple(_pair(split, split_score(state, before, split), split_score(state, after, split)) for split in SPLITS),
    )


def measured(state: RunState, ref: int | str) -> Evaluation:
    """The evaluation that measured the candidate named `ref`; raises UsageError with the names there are."""
    if ref == CHAMPION and state.champion is not None and state.champion.evaluation in state.evaluations:
        return state.evaluations[state.champion.evaluation]
    by_iteration = {e.request.iteration: e for e in candidate_evaluations(state)}
    number = int(ref) if isinstance(ref, int) or (ref.isascii() and ref.isdecimal()) else None
    if number in by_iteration:
        return by_iteration[number]
    names = [*map(str, sorted(by_iteration)), *([CHAMPION] if state.champion else [])]
    offer = f"take one of {', '.join(names)}" if names else "this run has measured none yet, wait for its baseline"
    raise UsageError(f"no candidate '{str(ref)[:40]}' was measured in this run: {offer}")


def candidate_evaluations(state: RunState) -> list[Evaluation]:
    """Evaluations of candidates, in the order in which they were asked for."""
    found = (state.evaluations[id_] for id_ in dict.fromkeys(state.evaluation_order))
    return [e for e in found if e.request.purpose == "candidate"]


def adapter_lineage(state: RunState, adapter: Blob | None) -> tuple[AdapterStep, ...]:
    """Weight updates from the base to `adapter`, oldest first."""
    chain: dict[str, AdapterTrained] = {}
    while adapter is not None and adapter.digest not in chain and adapter.digest in state.adapters:
        chain[adapter.digest] = state.adapters[adapter.digest]
        adapter = chain[adapter.digest].parent
    steps = [AdapterStep(digest, x.algorithm, x.iteration, x.rounds, x.steps) for digest, x in chain.items()]
    return tuple(reversed(steps))


def harness_lineage(state: RunState, harness: Blob) -> tuple[HarnessEdited, ...]:
    """Edits from the draft to `harness`, oldest first."""
    chain: dict[str, HarnessEdited] = {}
    node = state.harnesses.get(harness.digest)
    while isinstance(node, HarnessEdited) and node.harness.digest not in chain:
        chain[node.harness.digest] = node
        node = state.harnesses.get(node.parent.digest)
    return tuple(reversed(chain.values()))


def _pair(split: Split, before: SplitScore | None, after: SplitScore | None) -> ScorePair:
    return ScorePair(
        split,
        before.mean if before else None,
        after.mean if after else None,
        before.coverage if before else None,
        after.coverage if after else None,
    )


def split_score(state: RunState, evaluation: Evaluation, split: Split) -> SplitScore | None:
    """The candidate's score on a split; on the sealed test from the evaluation that opened it."""
    holders = [evaluation]
    if split == "test":
        candidate = evaluation.request.candidate
        holders = [e for e in state.evaluations.values() if _opened_test(e) and e.request.candidate == candidate]
    scores = (holder.completed.scores.get(split) for holder in holders if holder.completed)
    return next((score for score in scores if score is not None), None)


def _opened_test(evaluation: Evaluation) -> bool:
    return evaluation.request.purpose in ("test", "baseline")


def _texts(old: Harness, new: Harness, old_name: str, new_name: str) -> tuple[TextChange, ...]:
    changes: list[TextChange] = []
    for component in COMPONENTS:
        if component == "retry_policy":
            continue
        before, after = _lines(getattr(old, component)), _lines(getattr(new, component))
        headings = f"{component} ({old_name})", f"{component} ({new_name})"
        if lines := tuple(difflib.unified_diff(before, after, *headings, lineterm="")):
            changes.append(TextChange(component, lines))
    return tuple(changes)


def _lines(component: str | SystemPrompt) -> list[str]:
    """A component as lines; demonstrations follow the instruction, one turn after the other."""
    if isinstance(component, str):
        return component.splitlines()
    lines = component.text.splitlines()
    for example in component.examples:
        lines += [f"user: {line}" for line in example.user.splitlines()]
        lines += [f"assistant: {line}" for line in example.assistant.splitlines()]
    return lines


def _policy(old: Harness, new: Harness) -> tuple[FieldChange, ...]:
    sides = [msgspec.structs.asdict(harness.retry_policy) for harness in (old, new)]
    return tuple(
        FieldChange(field, repr(before), repr(after))
        for (field, before), after in zip(sides[0].items(), sides[1].values(), strict=True)
        if before != after
    )

"""A moment of a run: the champion's harness and adapter as they stood after an event, shown in short or as files.

The folder of `export` holds the harness part by part, the adapter as PEFT loads it, and `moment.json`, which says where
it all comes from. It is whole or not there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from resia.events import Blobs, CandidateAccepted, Fact, Harness, SplitScore, decode_harness
from resia.events.errors import UsageError
from resia.replay.diff import SPLITS, AdapterStep, adapter_lineage, harness_lineage, split_score
from resia.replay.state import Champion, RunState
from resia.replay.wording import score_text

from .reading import Log


class EditStep(msgspec.Struct, frozen=True):
    """One edit in a harness's descent."""

    digest: str
    operator: str
    component: str
    iteration: int


class Moment(msgspec.Struct, frozen=True):
    """The champion after `event`, with digests of the whole harness and of each component. `adapter` None: the base
    weights. `edits` and `updates` lead to it, oldest first, also through the run's ancestors. `scores` are mean
    rewards by split, `coverage` the share of a split's rollouts that was scored, where it is below 1."""

    run: str
    event: int
    iteration: int
    state: str
    harness: str
    components: dict[str, str]
    adapter: str | None
    base_model: str
    base_digest: str
    edits: tuple[EditStep, ...]
    updates: tuple[AdapterStep, ...]
    scores: dict[str, float]
    coverage: dict[str, float] = {}


def moment_of(run: str, state: RunState, digest: str) -> Moment | None:
    """The moment of `state`, whose digest is `digest`; None before the first champion."""
    champion, request = state.champion, state.request
    if champion is None or request is None:
        return None
    harness, adapter = champion.candidate.harness, champion.candidate.adapter
    node = state.harnesses.get(harness.digest)
    edits, scores = harness_lineage(state, harness), _scores(state, champion)
    return Moment(
        run,
        state.sequence,
        state.iteration,
        digest,
        harness.digest,
        {str(name): value for name, value in node.components.items()} if node else {},
        adapter.digest if adapter else None,
        request.settings.engine.model,
        request.model_digest,
        tuple(EditStep(edit.harness.digest, edit.operator, edit.component, edit.iteration) for edit in edits),
        adapter_lineage(state, adapter),
        {split: score.mean for split, score in scores.items()},
        {split: score.coverage for split, score in scores.items() if score.coverage < 1},
    )


def _scores(state: RunState, champion: Champion) -> dict[str, SplitScore]:
    found = state.evaluations.get(champion.evaluation)
    scores = {split: split_score(state, found, split) for split in SPLITS} if found else {}
    return {str(split): score for split, score in scores.items() if score is not None}


def harness_of(state: RunState, blobs: Blobs) -> Harness:
    """The champion's harness; BlobError when its bytes are missing or damaged."""
    assert state.champion is not None  # the caller has a moment
    return decode_harness(blobs.get(state.champion.candidate.harness))


def texts(moment: Moment, harness: Harness) -> list[str]:
    """The moment for a person, a line a thought, and the system prompt whole."""
    lines = [f"{name}: {digest}" for name, digest in moment.components.items()]
    edits = [f"{e.operator} on {e.component} (iteration {e.iteration})" for e in moment.edits]
    updates = [f"{u.digest[:12]} ({u.algorithm}, iteration {u.iteration}, {u.steps} steps)" for u in moment.updates]
    lines.append(f"harness: {' -> '.join(['draft', *edits])}")
    lines.append(f"adapter: {' -> '.join([moment.base_model, *updates])}")
    if moment.scores:
        scores = (f"{split} {score_text(m, moment.coverage.get(split))}" for split, m in moment.scores.items())
        lines.append("scores: " + ", ".join(scores))
    policy, shown = harness.retry_policy, len(harness.system_prompt.examples)
    lines.append(
        f"retry policy: temperature {policy.temperature:g}, tokens {policy.max_new_tokens}, attempts {policy.attempts}"
        + (f", votes {policy.votes}" if policy.votes > 1 else "")
    )
    lines.append(f"system prompt, with {shown} demonstrations:")
    return [*lines, *(f"  {line}" for line in harness.system_prompt.text.splitlines())]


def require_free(folder: Path) -> None:
    """Raise UsageError unless `folder` is not there, or empty."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name another folder with --out, or empty this one")
    elif folder.exists():
        raise UsageError(f"{folder} is a file: name a folder with --out")


def export(log: Log, state: RunState, moment: Moment | None, blobs: Blobs, folder: Path) -> None:
    """Write the moment of `state` into `folder`: system_prompt.txt, dispatch.py, extract.py, retry_policy.json,
    harness.json (the blob's own bytes), adapter/ for PEFT where there is one, and moment.json.

    Raises UsageError where there is no champion yet or the folder cannot be used, BlobError for a missing blob.
    """
    if moment is None or state.champion is None:
        raise UsageError(f"run '{log.run}' has no champion at event {state.sequence} to export: {_first_champion(log)}")
    require_free(folder)
    harness, adapter = harness_of(state, blobs), state.champion.candidate.adapter
    weights = blobs.get(adapter) if adapter else None
    partial = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write_harness(harness, partial)
        if weights is not None:
            from resia.trainers.adapter import export_peft

            export_peft(weights, partial / "adapter")
        (partial / "moment.json").write_bytes(_pretty(moment))
        partial.replace(folder)
    except OSError as cause:
        raise UsageError(f"{folder} cannot be written ({cause.strerror}): name another folder with --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _first_champion(log: Log) -> str:
    for fact in log.facts:
        if isinstance(fact, Fact) and isinstance(fact.event, CandidateAccepted):
            return f"take --at {fact.sequence} or a later one"
    return "wait until its baseline is measured"


def _write_harness(harness: Harness, folder: Path) -> None:
    (folder / "harness.json").write_bytes(harness.encoded())
    (folder / "system_prompt.txt").write_text(harness.system_prompt.text, encoding="utf-8")
    (folder / "dispatch.py").write_text(harness.tool_dispatch, encoding="utf-8")
    (folder / "extract.py").write_text(harness.answer_extraction, encoding="utf-8")
    (folder / "retry_policy.json").write_bytes(_pretty(harness.retry_policy))


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"

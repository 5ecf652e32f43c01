"""What the reading commands show: JSON lines for programs, texts and tables for people, from one folded log."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from rich.console import Console, RenderableType

from resia.events import Harness, decode_harness
from resia.events.errors import UsageError
from resia.replay.diff import Diff, diff
from resia.replay.explain import explain, parse_run_ref
from resia.replay.memory import tried_edits
from resia.replay.report import Summary, rows, summary
from resia.replay.wording import score_text

from .protocol import RunEntry
from .reading import state_of
from .store import Store, opened


class Shown(NamedTuple):
    """A command's output: `lines` for --json, `parts` to print otherwise, and the exit code."""

    lines: tuple[object, ...]
    parts: tuple[RenderableType, ...]
    code: int = 0


async def runs_view(store: Store) -> Shown:
    """Every run in the registry."""
    async with opened(store) as bus:
        entries = await bus.runs()
    texts = [f"{entry.run}  {entry.status}{_kept(entry)}" for entry in entries] or [
        "there is no run yet: resia run, or resia demo"
    ]
    return Shown(tuple(msgspec.to_builtins(entry) for entry in entries), tuple(texts))


def _kept(entry: RunEntry) -> str:
    return f", archived at {entry.archive.path}" if entry.archive else ""


async def status_view(store: Store, run: str) -> Shown:
    """The table of what was tried, alarms, cost, the memory of edits, and controls."""
    from .console import controls_table, cost_table, table
    from .drift_view import drift_text, drifts_of
    from .edits_table import edits_table

    state = await state_of(store, run)
    result, tried, edits = summary(state), rows(state), tried_edits(state)
    alarms = [f"alarm: {a.probe}: {a.detail}" for a in state.alarms]
    alarms += [f"alarm: drift: {drift_text(d)}" for d in drifts_of(state) if d.alarmed]
    cost = f"{result.events} events, {result.rollouts} rollouts, {result.tokens:,} tokens{_money(result)}"
    about = f"{run} (fork of {result.parent})" if result.parent else run
    head = f"{about}: {result.status}{f': {result.reason}' if result.reason else ''}"
    parts: list[RenderableType] = [head, table(tried, Console().width), *alarms, cost, cost_table(result)]
    if edits:
        parts.append(edits_table(edits, Console().width))
    if result.controls:
        parts.append(controls_table(result))
    elif result.controls_error:
        parts.append(f"controls failed: {result.controls_error}")
    listed = {"candidates": msgspec.to_builtins(tried), "edits": msgspec.to_builtins(edits)}
    drifts = msgspec.to_builtins(drifts_of(state))
    line = {"run": run, **msgspec.to_builtins(result), **listed, **({"drifts": drifts} if drifts else {})}
    return Shown((line,), tuple(parts))


def _money(result: Summary) -> str:
    return f", {result.money:.4f} {result.currency}" if result.money else ""


async def explain_view(store: Store, ref: str) -> Shown:
    """Why an iteration decided what it did."""
    run, iteration = parse_run_ref(ref)
    if iteration is None:
        raise UsageError(f"explain needs an iteration: write RUN@K with K from 1, such as '{run}@1'")
    found = explain(await state_of(store, run), iteration)
    return Shown(({"run": run, **msgspec.to_builtins(found)},), (found.text,))


async def diff_view(store: Store, run: str, a: str, b: str) -> Shown:
    """What changed from candidate `a` to candidate `b`."""
    state = await state_of(store, run)
    blobs = store.blobs()
    named = {node.harness.digest: node.harness for node in state.harnesses.values()}

    def harness_of(key: str) -> Harness:
        return decode_harness(blobs.get(named[key]))

    found = diff(state, a, b, harness_of)
    return Shown(({"run": run, **msgspec.to_builtins(found)},), tuple(_diff_texts(found)))


def _diff_texts(found: Diff) -> list[str]:
    texts = [line for change in found.texts for line in (f"== {change.component}", *change.lines)]
    if found.policy:
        texts += ["== retry_policy", *(f"{c.field}: {c.before} -> {c.after}" for c in found.policy)]
    for name, lineage in (("before", found.adapters_before), ("after", found.adapters_after)):
        steps = [f"{s.digest[:12]} ({s.algorithm}, iteration {s.iteration}, {s.steps} steps)" for s in lineage]
        texts.append(f"adapter {name}: {' -> '.join(['base', *steps])}")
    pairs = [
        f"{s.split} {score_text(s.before, s.before_coverage)} -> {score_text(s.after, s.after_coverage)}"
        for s in found.scores
    ]
    return [*texts, "scores: " + ", ".join(pairs)]

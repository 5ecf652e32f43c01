"""What the reading commands show: JSON lines for programs, texts and tables for people, from one folded log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
from rich.console import Console, RenderableType

from resia.events import Custom, Fact, Harness, Logged, Skipped, decode_harness
from resia.events.errors import BlobError, UsageError
from resia.replay.diff import Diff, diff
from resia.replay.digest import digest
from resia.replay.explain import explain, parse_run_ref
from resia.replay.report import rows, summary
from resia.replay.state import RunState
from resia.replay.verify import Problem, Report, blobs_named, check

from .reading import Log, load
from .store import Store, opened, require_run


class Shown(NamedTuple):
    """A command's output: `lines` for --json, `parts` to print otherwise, and the exit code."""

    lines: tuple[object, ...]
    parts: tuple[RenderableType, ...]
    code: int = 0


async def replay_view(store: Store, ref: str, at: int | None, verify: bool) -> Shown:
    """State at an event or an iteration's decision; with `verify` the whole log is checked."""
    run, iteration = parse_run_ref(ref)
    if iteration is not None and at is not None:
        raise UsageError(f"'{ref}' already names an event: leave --at out")
    log = await load(store, run)
    state = log.at(_event_of(log, iteration) if iteration is not None else at)
    report = verify_log(log, store) if verify else None
    problems = report.problems if report else ()
    found: dict[str, Any] = {
        "run": run,
        "events": state.sequence,
        "digest": digest(state),
        "status": state.status,
        "iteration": state.iteration,
        "champion": _champion(state),
    }
    if report is not None:
        found |= {"verified": not problems, "problems": [msgspec.to_builtins(p) for p in problems]}
    texts = [f"{key}: {_text(value)}" for key, value in found.items() if key != "problems"]
    texts += [f"event {p.sequence} ({p.kind}): {p.why}" for p in problems]
    return Shown((found,), tuple(texts), 1 if problems else 0)


def _event_of(log: Log, iteration: int) -> int:
    for decision in log.at().decisions:
        if decision.decision.iteration == iteration:
            return decision.sequence
    raise UsageError(f"run '{log.run}' took {log.at().iteration} decisions; there is no iteration {iteration}")


def verify_log(log: Log, store: Store) -> Report:
    """Hashes, numbering, causes and rules of a log, and the bytes of every blob that it names."""
    from .roles import deciders

    report = check(log.facts, deciders())
    blobs, lost, seen = store.blobs(), list(report.problems), set()
    for fact in log.facts:
        for blob in blobs_named(fact.event) if isinstance(fact, Fact) else ():
            if blob.digest in seen:
                continue
            seen.add(blob.digest)
            try:
                blobs.get(blob)
            except BlobError as cause:
                lost.append(Problem(fact.sequence, "blob", str(cause)))
    return msgspec.structs.replace(report, problems=tuple(sorted(lost, key=lambda p: p.sequence)))


def _champion(state: RunState) -> dict[str, str | None] | None:
    if state.champion is None:
        return None
    candidate = state.champion.candidate
    return {"harness": candidate.harness.digest, "adapter": candidate.adapter.digest if candidate.adapter else None}


async def runs_view(store: Store) -> Shown:
    """Every run in the registry."""
    async with opened(store) as bus:
        entries = await bus.runs()
    texts = [f"{entry.run}  {entry.status}" for entry in entries] or ["there is no run yet: resia run, or resia demo"]
    return Shown(tuple(msgspec.to_builtins(entry) for entry in entries), tuple(texts))


async def status_view(store: Store, run: str) -> Shown:
    """The table of what was tried, alarms, cost and controls."""
    from .console import controls_table, table

    state = (await load(store, run)).at()
    result, tried = summary(state), rows(state)
    alarms = [f"alarm: {a.probe}: {a.detail}" for a in state.alarms]
    cost = f"{result.events} events, {result.rollouts} rollouts, {result.tokens:,} tokens"
    head = f"{run}: {result.status}{f': {result.reason}' if result.reason else ''}"
    parts: list[RenderableType] = [head, table(tried, Console().width), *alarms, cost]
    if result.controls:
        parts.append(controls_table(result))
    elif result.controls_error:
        parts.append(f"controls failed: {result.controls_error}")
    line = {"run": run, **msgspec.to_builtins(result), "candidates": [msgspec.to_builtins(row) for row in tried]}
    return Shown((line,), tuple(parts))


async def explain_view(store: Store, ref: str) -> Shown:
    """Why an iteration decided what it did."""
    run, iteration = parse_run_ref(ref)
    if iteration is None:
        raise UsageError(f"explain needs an iteration: write RUN@K with K from 1, such as '{run}@1'")
    found = explain(list((await load(store, run)).facts), iteration)
    return Shown(({"run": run, **msgspec.to_builtins(found)},), (found.text,))


async def diff_view(store: Store, run: str, a: str, b: str) -> Shown:
    """What changed from candidate `a` to candidate `b`."""
    state = (await load(store, run)).at()
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
    pairs = [f"{s.split} {_score(s.before)} -> {_score(s.after)}" for s in found.scores]
    return [*texts, "scores: " + ", ".join(pairs)]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


async def tail_lines(
    store: Store, run: str, follow: bool, types: frozenset[str]
) -> AsyncIterator[tuple[dict[str, Any], str]]:
    """(JSON object, text line) of each event; with `follow` until the run has ended."""
    async with opened(store) as bus:
        await require_run(bus, run)
        async for fact in bus.read(run, follow=follow):
            kind = "unreadable" if isinstance(fact, Skipped) else fact.envelope.type
            if not types or kind in types:
                yield _tail_line(fact)
            if follow and kind in ("run-completed", "run-failed"):
                return


def _tail_line(fact: Logged) -> tuple[dict[str, Any], str]:
    if isinstance(fact, Skipped):
        return {"sequence": fact.sequence, "unreadable": fact.why}, f"{fact.sequence:6}  unreadable: {fact.why}"
    event = fact.payload if isinstance(fact, Custom) else msgspec.to_builtins(fact.event)
    line = {"sequence": fact.sequence, **msgspec.to_builtins(fact.envelope), "payload": event}
    who = fact.envelope.producer
    return line, f"{fact.sequence:6}  {who.role:8}  {fact.envelope.type:20}  {_brief(event)}"


def _brief(event: dict[str, Any], limit: int = 110) -> str:
    """The scalar fields of an event on one line, ids and digests cut short."""
    shown = []
    for key, value in event.items():
        if isinstance(value, str):
            shown.append(f"{key}={value[:12] if len(value) in (26, 64) else value}")
        elif isinstance(value, float):
            shown.append(f"{key}={value:.4g}")
        elif isinstance(value, int):
            shown.append(f"{key}={value}")
    text = " ".join(" ".join(shown).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {v or 'base'}" for k, v in value.items())
    return str(value)

"""Replay at three depths, each of which holds the ones before it.

state: fold the facts; numbering, ids, causes, bases, Merkle roots and what a fork inherits. Reads the log only.
decisions: the bytes of every blob that the log names, and every decision again on exactly what its writer had folded.
compute: every training, sampling, draft, edit and control again, compared bit for bit (`recompute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from resia.events import Blobs
from resia.events.errors import BlobError, UnknownName, UsageError
from resia.replay.digest import digest
from resia.replay.explain import parse_run_ref
from resia.replay.redeciding import Decide
from resia.replay.state import RunState
from resia.replay.verify import Problem, Report, check

from .blobcheck import blob_problems
from .moment import Moment, export, harness_of, moment_of
from .moment import texts as moment_texts
from .reading import Log
from .recompute import ONLY, Heard, Recomputation, performances, recompute
from .store import Store
from .views import Shown

Depth = Literal["state", "decisions", "compute"]
DEPTHS: tuple[Depth, ...] = ("state", "decisions", "compute")


class Asked(NamedTuple):
    """What to replay: a run up to its event `at` or its decision `iteration` (neither: all), how deep, and where to
    export the harness and adapter of that moment."""

    run: str
    iteration: int | None
    at: int | None
    depth: Depth
    only: str | None
    out: Path | None

    @property
    def is_moment(self) -> bool:
        return self.iteration is not None or self.at is not None or self.out is not None


def asked(ref: str, at: int | None, depth: str | None, verify: bool, only: str | None, out: Path | None) -> Asked:
    """The request, checked; `verify` is another word for the decisions depth. Raises UsageError."""
    run, iteration = parse_run_ref(ref)
    if iteration is not None and at is not None:
        raise UsageError(f"'{ref}' already names an event: leave --at out")
    if verify and depth not in (None, "decisions"):
        raise UsageError(f"--verify is --depth decisions, and --depth {depth} was asked for too: leave one out")
    chosen = depth or ("decisions" if verify else "state")
    found = next((known for known in DEPTHS if known == chosen), None)
    if found is None:
        raise UnknownName("depth", chosen, DEPTHS)
    if only is not None and only not in ONLY:
        raise UnknownName("work for --only", only, ONLY)
    if only is not None and found != "compute":
        raise UsageError("--only says what is performed again: it goes with --depth compute")
    return Asked(run, iteration, at, found, only, out)


class Replayed(NamedTuple):
    """What a replay found up to `state`."""

    state: RunState
    digest: str
    problems: tuple[Problem, ...]
    recomputed: Recomputation | None


def replay(
    log: Log,
    store: Store,
    what: Asked,
    cache: Path | None = None,
    unsafe_local: bool = False,
    heard: Heard = lambda _what, _done, _total: None,
) -> Replayed:
    """Replay a log. Problems of later events than the one asked for are left out."""
    at = log.decision_event(what.iteration) if what.iteration is not None else what.at
    state = log.at(at) if at is not None else None
    report = check_log(log) if what.depth == "state" else verify_log(log, store)
    state = state or report.state
    found, recomputed = [p for p in report.problems if p.sequence <= state.sequence], None
    if what.depth == "compute":
        works = performances(log, what.only, state.sequence)
        recomputed = recompute(log, store.blobs(), works, cache, unsafe_local, heard)
        found += recomputed.problems
    return Replayed(state, digest(state), tuple(sorted(found, key=lambda p: p.sequence)), recomputed)


def check_log(log: Log, decide_by_role: Mapping[str, Decide] | None = None) -> Report:
    """`check` over what the log inherits; an ancestor that is no longer what its fork began with is a problem too."""
    report = check(log.facts, decide_by_role, log.origin)
    inherited = tuple(Problem(1, "parent", why) for why in log.ancestry.changed)
    return msgspec.structs.replace(report, problems=(*inherited, *report.problems))


def verify_log(log: Log, store: Store) -> Report:
    """The decisions depth: `check_log` with every rule, and the bytes of every blob that the log names."""
    from .roles import deciders

    report = check_log(log, deciders())
    problems = (*report.problems, *blob_problems(log.facts, store.blobs()))
    return msgspec.structs.replace(report, problems=tuple(sorted(problems, key=lambda p: p.sequence)))


# -- shown -------------------------------------------------------------------------------------------------------------


def shown(log: Log, store: Store, what: Asked, found: Replayed) -> Shown:
    """One JSON object, or texts; exports what was asked for. Exit code 1 when anything diverges."""
    state = found.state
    line: dict[str, Any] = {
        "run": log.run,
        "depth": what.depth,
        "events": state.sequence,
        "digest": found.digest,
        "status": state.status,
        "iteration": state.iteration,
        "champion": _champion(state),
        "divergences": [{"event": p.sequence, "kind": p.kind, "why": p.why} for p in found.problems],
    }
    texts = [f"{key}: {_text(value)}" for key, value in line.items() if key != "divergences"]
    if what.is_moment:
        moment = moment_of(log.run, state, found.digest)
        line["moment"] = msgspec.to_builtins(moment)
        texts += _moment_texts(state, moment, store.blobs())
        if what.out is not None:
            export(log, state, moment, store.blobs(), what.out)
            texts.append(f"exported to: {what.out}")
    if found.recomputed is not None:
        line |= _recomputed(found.recomputed)
        texts += _recomputed_texts(found.recomputed)
    texts.append(f"divergences: {len(found.problems)}")
    texts += [f"event {p.sequence} ({p.kind}): {p.why}" for p in found.problems]
    return Shown((line,), tuple(texts), 1 if found.problems else 0)


def _recomputed(found: Recomputation) -> dict[str, Any]:
    unsaid = [{"event": n.sequence, "type": n.type, "why": n.why, "fields": n.fields} for n in found.not_comparable]
    return {"performed": found.performed, "not_comparable": unsaid}


def _recomputed_texts(found: Recomputation) -> list[str]:
    again = ", ".join(f"{count} {kind}" for kind, count in found.performed.items()) or "nothing"
    texts = [f"performed again: {again}", f"not comparable: {len(found.not_comparable)}"]
    return texts + [f"event {n.sequence} ({n.type}): not comparable: {n.why}" for n in found.not_comparable]


def _moment_texts(state: RunState, moment: Moment | None, blobs: Blobs) -> list[str]:
    if moment is None:
        return ["there is no champion yet at this event"]
    try:
        return moment_texts(moment, harness_of(state, blobs))
    except BlobError as cause:
        return [f"harness: {cause}"]


def _champion(state: RunState) -> dict[str, str | None] | None:
    if state.champion is None:
        return None
    candidate = state.champion.candidate
    return {"harness": candidate.harness.digest, "adapter": candidate.adapter.digest if candidate.adapter else None}


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {v or 'base'}" for k, v in value.items())
    return str(value)

"""The compute depth: perform every settled request of a log again, and compare what comes out bit for bit.

A request is performed again on the state that its outcome was based on, with the blobs of the store, which is never
written to. Where this machine is not what the outcome's manifest says, or where an outside party had failed, nothing
can be said: such a request is named as not comparable, which is no divergence.
Collaborators: `bitequal` compares, `roles` and `resources` perform, `overlay` keeps the store as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from resia.agents.ports import PROGRAMS
from resia.events import (
    ASKED,
    OUTCOMES,
    Blobs,
    DraftFailed,
    EditFailed,
    Event,
    Fact,
    HarnessDrafted,
    HarnessEdited,
    KernelBenchmarked,
    KernelRejected,
    Manifest,
    RolloutFailed,
    RolloutsRequested,
    RoundRequested,
    RunRequested,
    TrainingFailed,
)
from resia.events.errors import ResiaError
from resia.replay.fold import fold
from resia.replay.redeciding import PERFORMED, written_by
from resia.replay.state import RunState
from resia.replay.verify import Problem

from .asking import RecordedLine
from .bitequal import Performance, Unsaid, compare
from .overlay import OverlayBlobs
from .reading import Log
from .resources import Resources
from .roles import role
from .worker import Role

Only = Literal["training", "sampling"]
ONLY: Mapping[str, type[Event]] = {"training": RoundRequested, "sampling": RolloutsRequested}
PROPOSALS = (HarnessDrafted, DraftFailed, HarnessEdited, EditFailed)
# What a rule or an effect raises on a history that it could not have been given.
_WRONG_STATE = (LookupError, ValueError, TypeError, AttributeError, AssertionError)
DIGEST_CHARS = 64
Heard = Callable[[str, int, int], None]
RoleOf = Callable[[str], Role]


class NotComparable(msgspec.Struct, frozen=True):
    """The request behind event `sequence` says nothing here: `why`, and each field that differs, (recorded, here)."""

    sequence: int
    type: str
    why: str
    fields: dict[str, tuple[str, str]] = {}


class Recomputation(msgspec.Struct, frozen=True):
    """`performed` counts requests by wire type that were performed again and compared. Lists are in log order."""

    performed: dict[str, int]
    problems: tuple[Problem, ...]
    not_comparable: tuple[NotComparable, ...]


def performances(log: Log, only: str | None = None, up_to: int | None = None) -> list[Performance]:
    """The settled requests of a log, `only` trainings or samplings (a key of ONLY), settled at event `up_to` or before.

    In the order of the events on which their outcomes were based.
    """
    by_id: dict[str, Fact] = {}
    caused: dict[str, dict[str, Fact]] = {}
    for fact in log.facts[:up_to]:
        if not isinstance(fact, Fact):
            continue
        by_id.setdefault(fact.envelope.id, fact)
        cause = by_id.get(fact.envelope.cause or "")
        if cause is not None and _performed(fact, cause) and (only is None or isinstance(cause.event, ONLY[only])):
            caused.setdefault(cause.envelope.id, {}).setdefault(fact.envelope.id, fact)
    found = [
        Performance(by_id[id_], fact, facts)
        for id_, facts in caused.items()
        for fact in facts.values()
        if isinstance(fact.event, OUTCOMES)
    ]
    return sorted(found, key=lambda work: (work.outcome.envelope.basis, work.outcome.sequence))


def _performed(fact: Fact, cause: Fact) -> bool:
    """Whether `fact` was written by performing `cause`, and not by a rule."""
    if isinstance(fact.event, TrainingFailed):
        return isinstance(cause.event, RoundRequested)
    return type(fact.event) in PERFORMED and type(fact.event) not in ASKED  # it is asked again, and of this log


def recompute(
    log: Log,
    blobs: Blobs,
    works: Sequence[Performance],
    cache: Path | None = None,
    unsafe_local: bool = False,
    heard: Heard = lambda _what, _done, _total: None,
) -> Recomputation:
    """Perform `works`, of `performances(log)`, again over the store's `blobs`.

    `heard` is told before each what it is, how many are done, and of how many. Sets the number of threads of this
    process's torch to the recorded one.
    """
    with OverlayBlobs(blobs) as overlay:
        resources = Resources(overlay, cache, unsafe_local)
        try:
            again = _Again(log, resources)
            for done, work in enumerate(works):
                heard(f"{work.request.envelope.type}, event {work.request.sequence}", done, len(works))
                again.take(work)
            heard("all performed again", len(works), len(works))
        finally:
            resources.close()
    return again.result()


class _Again:
    """Performs requests in the order of their bases, folding the log along."""

    def __init__(self, log: Log, resources: Resources) -> None:
        self._log, self._resources = log, resources
        self._state = log.origin
        self._line = RecordedLine(log.at)
        self._roles: dict[str, Role] = {}
        self._here: dict[int, Manifest] = {}
        self._domain: str | None = None
        self._counts: Counter[str] = Counter()
        self._problems: list[Problem] = []
        self._unsaid: list[NotComparable] = []

    def result(self) -> Recomputation:
        return Recomputation(
            dict(sorted(self._counts.items())),
            tuple(sorted(self._problems, key=lambda problem: problem.sequence)),
            tuple(sorted(self._unsaid, key=lambda unsaid: unsaid.sequence)),
        )

    def take(self, work: Performance) -> None:
        number, kind = work.outcome.sequence, work.outcome.envelope.type
        try:
            found = compare(work, self._perform(work), self._resources.blobs)
        except Unsaid as cause:
            self._unsaid.append(NotComparable(number, kind, cause.why, cause.fields))
        except ResiaError as cause:  # a blob, a model, a sandbox that is not here
            self._unsaid.append(NotComparable(number, kind, f"it cannot be performed again here: {cause}"))
        except _WRONG_STATE as cause:
            why = f"{written_by(work.outcome)} wrote {kind}; performing it again fails: {type(cause).__name__}: {cause}"
            self._problems.append(Problem(number, "compute", why))
        else:
            self._counts[work.request.envelope.type] += 1
            self._problems += [Problem(sequence, "compute", why) for sequence, why in found]

    def _perform(self, work: Performance) -> list[Any]:
        """The events that performing gives on the state it was performed on; Unsaid when that cannot be had here."""
        if any(isinstance(fact.event, RolloutFailed) for fact in work.recorded.values()):
            raise Unsaid("the engine or the sandbox had failed, which is not made to happen again")
        if isinstance(work.outcome.event, KernelBenchmarked | KernelRejected):
            raise Unsaid("a clock had part in the verdict on a kernel: resia kernel bench judges its file again")
        state, recorded = self._state_at(work), manifest_of(work.outcome)
        request = state.request
        if request is None:
            raise Unsaid("the log names no run before it")
        if request.settings.proposer == "llm" and isinstance(work.outcome.event, PROPOSALS):
            raise Unsaid(f"model {request.settings.llm.model} behind an endpoint proposed it, an outside party")
        if request.settings.engine.kind == "openai" and isinstance(work.request.event, RolloutsRequested):
            where = f"model {request.settings.engine.model} at {request.settings.endpoint.base_url}"
            raise Unsaid(f"{where} sampled it, an outside party: what it said is recorded, and not asked for again")
        if recorded is not None and recorded.engine:
            raise Unsaid(
                f"{recorded.engine} sampled it, and a server that batches requests as they come promises no bits: its"
                " log-probabilities are checked by drift-measured"
            )
        if differ := self._differing(request, work.outcome, recorded):
            what = ", ".join(f"{name} {_short(old)} there, {_short(new)} here" for name, (old, new) in differ.items())
            raise Unsaid(f"this machine is not what it was performed on: {what}", differ)
        if recorded is not None:
            state = _on_threads(_unbegun(state, work.request), request, recorded.threads)
        perform = self._role(work.outcome.envelope.producer.role).perform
        if perform is None:
            raise Unsaid("the role that performed it performs nothing in this package")
        return [event for batch in perform(state, work.request, self._line) for event in batch]

    def _state_at(self, work: Performance) -> RunState:
        basis = work.outcome.envelope.basis
        if not work.request.sequence <= basis < work.outcome.sequence:
            raise Unsaid(f"it says that it was performed on event {basis}, which cannot be")
        self._state = fold(self._log.facts[self._state.sequence : basis], self._state)
        return self._state

    def _role(self, name: str) -> Role:
        if name not in self._roles:
            self._roles[name] = role(name, self._resources, lambda _run: lambda _progress: None)
        return self._roles[name]

    def _differing(self, request: RunRequested, outcome: Fact, recorded: Manifest | None) -> dict[str, tuple[str, str]]:
        """Name -> (recorded, here) of what the bytes depend on and is not the same here."""
        writer = outcome.envelope.producer
        here = self._manifest(request, recorded.threads if recorded else 1)
        if recorded is None:  # made without a model: a draft, an edit, the controls
            pairs = {"package": (writer.package, here.package)}
        else:
            if recorded.sandbox_tier:
                programs = PROGRAMS in recorded.sandbox_tier
                here = msgspec.structs.replace(here, sandbox_tier=self._resources.sandbox_tier(programs))
            pairs = {name: (str(getattr(recorded, name)), str(getattr(here, name))) for name in here.__struct_fields__}
        if writer.role != "trainer":  # which knows no domain
            self._domain = self._resources.domain_digest(request) if self._domain is None else self._domain
            pairs["domain_digest"] = (request.domain_digest, self._domain)
        return {name: (there, here_) for name, (there, here_) in pairs.items() if there != here_}

    def _manifest(self, request: RunRequested, threads: int) -> Manifest:
        if threads not in self._here:
            self._here[threads] = self._resources.here(request, threads)
        return self._here[threads]


def _short(value: str) -> str:
    """A digest cut, anything else whole."""
    return value[:12] if len(value) == DIGEST_CHARS else value or "none"


def manifest_of(outcome: Fact) -> Manifest | None:
    """What an outcome says it was performed on; None where its type says nothing."""
    found = getattr(outcome.event, "manifest", None)
    return found if isinstance(found, Manifest) else None


def _unbegun(state: RunState, request: Fact) -> RunState:
    """The same state without what an interrupted attempt at a round had done, so that all of the round is computed
    and not its end alone."""
    event = request.event
    if not isinstance(event, RoundRequested) or event.training not in state.trainings:
        return state
    replace, training = msgspec.structs.replace, state.trainings[event.training]
    steps = tuple(step for step in training.steps if step.round != event.round)
    return replace(state, trainings=state.trainings.set(training.id, replace(training, steps=steps)))


def _on_threads(state: RunState, request: RunRequested, threads: int) -> RunState:
    """The same state with a request for `threads`, which torch is set to: a model that is loaded already keeps it."""
    import torch

    torch.set_num_threads(threads)
    if request.settings.engine.threads == threads:
        return state
    replace = msgspec.structs.replace
    engine = replace(request.settings.engine, threads=threads)
    return replace(state, request=replace(request, settings=replace(request.settings, engine=engine)))

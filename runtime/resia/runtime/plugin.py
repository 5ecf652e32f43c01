"""Workers of a user's own: a function and a declaration of what it is given and what it may write.

    alerts = Namespace("alerts")

    @alerts.event("regression-found")
    class RegressionFound(msgspec.Struct, frozen=True): ...

    @worker(role="alerts", consumes=["evaluation-completed"], emits=[RegressionFound])
    def regressions(fact, run):
        yield RegressionFound(...)

The function is called once for each event of the types that it consumes, and again for what a killed process had in
hand; what it gives is appended as one batch, under ids derived from the event, so a second time changes nothing. It
runs on the same loop as the roles of resia. Everything in a declaration is checked where it stands, by UsageError.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from resia.agents.ports import Line
from resia.events import (
    ENDINGS,
    NAMES,
    OUTCOMES,
    TYPES,
    Blobs,
    Custom,
    Event,
    Fact,
    KernelSubmitted,
    RolloutFailed,
    RolloutRecorded,
    StepTrained,
)
from resia.events.catalogue import WRITERS
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.custom import check_known, wire_type
from resia.events.errors import UsageError, WorkerError
from resia.events.schema import payload_schema
from resia.replay.state import RunState

from .bus import BATCH_LIMIT
from .permissions import RESERVED
from .worker import Role

__all__ = ["Declaration", "Run", "check_emits", "check_name", "check_role", "declaration_of", "role_of", "worker"]

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
_MARK = "__resia_worker__"
_ENVELOPE_BYTES = 4096  # the fields around a payload take less
# Of the core a worker may write what the performance of a request gives. Decisions are the rules': replay makes them
# again and would find that they differ.
_PERFORMED: tuple[type[Event], ...] = (*OUTCOMES, RolloutRecorded, RolloutFailed, StepTrained, KernelSubmitted)
F = TypeVar("F", bound=Callable[..., Any])
_log = structlog.get_logger()


class Run(NamedTuple):
    """The run that an event is of: its name, the fold of its log up to that event or further, and its blobs."""

    name: str
    state: RunState
    blobs: Blobs


class Declaration(NamedTuple):
    """A worker as declared. `consumes` are wire types; `login` names its user on the server and its durable."""

    name: str
    role: str
    consumes: tuple[str, ...]
    emits: tuple[type[msgspec.Struct], ...]
    function: Callable[[Any, Run], Any]

    @property
    def login(self) -> str:
        return f"{self.role}_{self.name}"

    @property
    def writes(self) -> tuple[str, ...]:
        """Wire types of `emits`."""
        return tuple(wire_type(cls)[0] for cls in self.emits)


def worker(
    *,
    role: str,
    consumes: Sequence[type[msgspec.Struct] | str],
    emits: Sequence[type[msgspec.Struct]] = (),
    name: str | None = None,
) -> Callable[[F], F]:
    """Declare the function below a worker, which stays what it is: call it with (fact, run) in a test.

    `role` is who writes in the log: a name of one's own, or a role of resia whose requests it performs. `consumes` are
    event classes or wire types, core or custom; `emits` the classes of all that it may write; `name`, one a role, is
    the function's own by default. The function returns or yields events, plainly or asynchronously; none is fine.
    """
    kinds = tuple(dict.fromkeys(_consumed(kind) for kind in consumes))
    if not kinds:
        raise UsageError("a worker that consumes nothing never runs: name event types in consumes=[...]")
    classes = tuple(dict.fromkeys(_emitted(cls) for cls in emits))
    check_emits(check_role(role), [wire_type(cls)[0] for cls in classes], kinds)

    def declare(function: F) -> F:
        named = str(name or getattr(function, "__name__", ""))
        setattr(function, _MARK, Declaration(check_name(named), role, kinds, classes, function))
        return function

    return declare


def declaration_of(function: object) -> Declaration | None:
    """What `worker` declared of a function; None for anything else."""
    found = getattr(function, _MARK, None)
    return found if isinstance(found, Declaration) else None


def check_role(role: str) -> str:
    """`role` itself when a worker may have it; UsageError otherwise."""
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise UsageError(
            f"role '{str(role)[:80]}' cannot be used: take small letters, digits and '-', at most 31, such as 'alerts'"
        )
    if role in RESERVED:
        raise UsageError(f"role '{role}' is no worker's: take another name, such as 'alerts'")
    return role


def check_name(name: str, what: str = "worker") -> str:
    """`name` itself when a `what` may have it; UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"a {what} cannot be called '{name[:80]}': take letters, digits, '_' and '-', at most 31")
    return name


def check_emits(role: str, kinds: Sequence[str], consumes: Sequence[str] = ()) -> None:
    """Refuse, by UsageError, a core type among the wire types `kinds` that a worker of `role` may not write."""
    for kind in kinds:
        cls = TYPES.get(check_known(kind))
        if cls is None:
            continue
        allowed = [NAMES[own] for own in _PERFORMED if own in WRITERS.get(role, ())]
        if kind not in allowed:
            what = f"it may write {' or '.join(sorted(allowed))}" if allowed else "it may write custom events"
            raise UsageError(f"a worker of role '{role}' cannot write {kind}: {what}")
        if custom := [name for name in consumes if name not in TYPES]:
            raise UsageError(f"{kind} answers a request of resia's, and {custom[0]} is none: consume core types only")


def role_of(declared: Declaration, blobs: Blobs) -> Role:
    """The declaration as a role of the worker loop, with a durable that its processes share.

    Two workers of one role are told apart by their ids' handler, but those that perform for a role of resia: there
    only one outcome of a request can stand, whoever performed it.
    """
    core = tuple(TYPES[kind] for kind in declared.consumes if kind in TYPES)
    custom = tuple(kind for kind in declared.consumes if kind not in TYPES)
    name = declared.role if declared.role in WRITERS else f"{declared.role}.{declared.name}"

    def perform(state: RunState, fact: Fact | Custom, _: Line) -> Iterator[Sequence[msgspec.Struct]]:
        yield _called(declared, fact, Run(fact.envelope.run, state, blobs))

    settles = any(issubclass(cls, OUTCOMES) for cls in declared.emits)
    return Role(name, (), _no_rules, core, perform, custom, declared.login, settles=settles)


def _no_rules(state: RunState, fact: Fact) -> list[Event]:
    """A worker of a user's own decides nothing: all it writes are inputs of a replay."""
    del state, fact
    return []


def _consumed(kind: type[msgspec.Struct] | str) -> str:
    name = check_known(kind) if isinstance(kind, str) else wire_type(kind)[0]
    if TYPES.get(name) in ENDINGS:
        raise UsageError(f"no worker acts on {name}: the run's log takes no more then; read it with resia tail")
    return name


def _emitted(cls: type[msgspec.Struct]) -> type[msgspec.Struct]:
    if isinstance(cls, str):
        raise UsageError(f"emits takes event classes, and '{cls}' is a text: give the class itself")
    wire_type(cls)
    payload_schema(cls)
    return cls


def _called(declared: Declaration, fact: Fact | Custom, run: Run) -> list[msgspec.Struct]:
    """What the function gives for one event, checked; WorkerError says what it did."""
    where = f"worker '{declared.name}' on event {fact.sequence} ({fact.envelope.type}) of run '{run.name}'"
    try:
        events = _gathered(declared.function(fact, run))
    except (Exception, SystemExit) as cause:
        _log.exception("worker failed", worker=declared.name, run=run.name, sequence=fact.sequence)
        raise WorkerError(f"{where} failed with {type(cause).__name__}: {cause}") from cause
    if len(events) > BATCH_LIMIT:
        raise WorkerError(f"{where} gave {len(events)} events, and one event may lead to {BATCH_LIMIT}: give fewer")
    for event in events:
        _check(declared, event, where)
    if any(isinstance(event, OUTCOMES) for event in events[:-1]):
        raise WorkerError(f"{where} gave events after the outcome of its request: give the outcome last, and once")
    return events


def _gathered(made: Any) -> list[msgspec.Struct]:
    """Everything that a function returns or yields, as it may: nothing, one event, many, now or awaited."""
    if inspect.isawaitable(made) or isinstance(made, AsyncIterable):
        made = asyncio.run(_awaited(made))
    if made is None:
        return []
    return [made] if isinstance(made, msgspec.Struct) else list(_iterable(made))


def _iterable(made: Any) -> Iterable[msgspec.Struct]:
    if isinstance(made, str | bytes | dict) or not isinstance(made, Iterable):
        raise TypeError(f"it gave a {type(made).__name__} where events belong")
    return made


async def _awaited(made: Any) -> Any:
    return [event async for event in made] if isinstance(made, AsyncIterable) else await made


def _check(declared: Declaration, event: msgspec.Struct, where: str) -> None:
    if type(event) not in declared.emits:
        raise WorkerError(
            f"{where} gave a {type(event).__qualname__}, which it does not declare: add the class to emits=[...]"
        )
    try:
        data = msgspec.json.encode(event)
        msgspec.json.decode(data, type=type(event))
    except (msgspec.MsgspecError, TypeError) as cause:
        raise WorkerError(f"{where} gave a {type(event).__qualname__} that breaks its own schema: {cause}") from None
    if len(data) > MAX_EVENT_BYTES - _ENVELOPE_BYTES:
        raise WorkerError(
            f"{where} gave a {type(event).__qualname__} of {len(data)} bytes: put what is large into run.blobs"
        )

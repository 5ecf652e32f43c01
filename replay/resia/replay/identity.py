"""Which id an event has: derived from what caused it, or from the request that it closes, and never drawn.

Whoever writes an event and whoever checks a log derive the same id here. Knows nothing of the bus.
"""

from __future__ import annotations

import msgspec

from resia.events import ANCHORS, OUTCOMES
from resia.events.custom import wire_type
from resia.events.ids import event_id

_PERFORM = ".perform."
_ANCHORS: dict[type[msgspec.Struct], tuple[str, ...]] = {kind: tuple(fields) for kind, fields in ANCHORS.items()}


def identity(run: str, cause: str | None, event: msgspec.Struct, handler: str, ordinal: int) -> str:
    """Id of the `ordinal`-th event (from 0) that `handler` wrote for `cause` (an event id; None: nothing caused it).

    `handler` is `ROLE.TYPE` of the event decided on, `ROLE.perform.TYPE` of the request performed, or `ROLE.genesis`.
    An anchored event (events.ANCHORS) takes its id from the request that it closes, or from what it asks, whoever
    writes it. The outcomes of performing a request (events.OUTCOMES) share one id, whatever their type: only one of
    them can be appended.
    """
    if is_outcome(event, handler):
        return event_id(run, cause or run, "outcome", 0)
    fields = _ANCHORS.get(type(event))
    if fields is None:
        return event_id(run, cause or run, handler, ordinal)
    closed = ":".join(str(getattr(event, field)) for field in fields)
    return event_id(run, closed or run, wire_type(type(event))[0], 0)


def is_outcome(event: msgspec.Struct, handler: str) -> bool:
    """Whether `event` settles the request that `handler` performs."""
    return _PERFORM in handler and isinstance(event, OUTCOMES)


def decided(role: str, kind: str) -> str:
    """Handler name of a role's decision on an event of wire type `kind`."""
    return f"{role}.{kind}"


def performed(role: str, kind: str) -> str:
    """Handler name of a role's performance of a request of wire type `kind`."""
    return f"{role}{_PERFORM}{kind}"

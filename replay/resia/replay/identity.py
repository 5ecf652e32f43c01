"""Which id an event has: derived from what caused it, or from the request that it closes, and never drawn.

Whoever writes an event and whoever checks a log derive the same id here. Knows nothing of the bus.
"""

from __future__ import annotations

from resia.events import ANCHORS, NAMES, Event
from resia.events.ids import event_id


def identity(run: str, cause: str | None, event: Event, handler: str, ordinal: int) -> str:
    """Id of the `ordinal`-th event (from 0) that `handler` wrote for `cause` (an event id; None: nothing caused it).

    `handler` is `ROLE.TYPE` of the event decided on, `ROLE.perform.TYPE` of the request performed, or `ROLE.genesis`.
    An anchored event (events.ANCHORS) takes its id from the request that it closes, whoever closes it.
    """
    anchor = ANCHORS.get(type(event))
    if anchor is None:
        return event_id(run, cause or run, handler, ordinal)
    closed = ":".join(str(getattr(event, field)) for field in anchor)
    return event_id(run, closed or run, NAMES[type(event)], 0)


def decided(role: str, kind: str) -> str:
    """Handler name of a role's decision on an event of wire type `kind`."""
    return f"{role}.{kind}"


def performed(role: str, kind: str) -> str:
    """Handler name of a role's performance of a request of wire type `kind`."""
    return f"{role}.perform.{kind}"

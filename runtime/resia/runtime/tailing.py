"""A run's events as they come, for programs (JSON objects) and for people (one line each)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from resia.events import Custom, Logged, Skipped
from resia.events.catalogue import TYPES
from resia.events.custom import is_custom
from resia.events.errors import UnknownName

from .client import UNREADABLE, open_run
from .store import Store


def check_types(types: Iterable[str]) -> frozenset[str]:
    """The wire types themselves: core ones, any of the custom form, or `unreadable`; UnknownName for others."""
    found = frozenset(types)
    for name in sorted(found):
        if name not in TYPES and name != UNREADABLE and not is_custom(name):
            raise UnknownName("event type", name, [*TYPES, UNREADABLE])
    return found


async def tail_lines(
    store: Store, run: str, follow: bool, types: frozenset[str], start: int = 1
) -> AsyncIterator[tuple[dict[str, Any], str]]:
    """(JSON object, text line) of each event from number `start`; with `follow` until the run has ended."""
    async with open_run(run, store) as found:
        async for fact in found.events(start=start, follow=follow, types=types):
            yield _tail_line(fact)


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

"""What a run waits for: a log that does not answer, or roles of which no process asks for work. Looked for once
nothing has been heard for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from resia.events.errors import BusError

from .bus import Bus

QUIET_S = 30.0  # whoever has work in hand speaks every three
LOOKS, LOOK_S = 3, 1.0  # a process that waits asks anew every two seconds, and may be missed by one look


class Quiet:
    """For how long nothing was heard of a run."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def heard(self) -> None:
        self._at = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._at


async def unserved(bus: Bus, run: str, roles: Collection[str]) -> tuple[str, ...]:
    """Those of `roles` of which no process waits for work in the run."""
    absent = list(roles)
    for look in range(LOOKS):
        if look:
            await asyncio.sleep(LOOK_S)
        found = [await bus.held(run, role) for role in absent]
        absent = [role for role, held in zip(absent, found, strict=True) if held is None or not held.idle]
    return tuple(absent)


async def tell_waiting(bus: Bus, run: str, roles: Collection[str], quiet: Quiet, tell: Callable[[str], None]) -> None:
    """For ever: `tell` what the run waits for, in a sentence, once nothing is heard of it and when that changes."""
    told = ""
    while True:
        await asyncio.sleep(max(QUIET_S - quiet.seconds, LOOK_S))
        if quiet.seconds < QUIET_S:
            continue
        why = await _waits_for(bus, run, roles)
        if why and why != told and quiet.seconds >= QUIET_S:
            tell(why)
        told = why


async def _waits_for(bus: Bus, run: str, roles: Collection[str]) -> str:
    """In words; empty where nothing is amiss."""
    try:
        await bus.last_sequence(run)
        missing = await unserved(bus, run, roles)
    except BusError as cause:
        return f"nothing moves: {cause}"
    return f"no process serves {', '.join(missing)}: start one with resia worker start ROLE" if missing else ""

"""Whom a run waits for: roles of which no process asks for work, looked for once nothing has been heard for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress

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


async def tell_unserved(
    bus: Bus, run: str, roles: Collection[str], quiet: Quiet, tell: Callable[[tuple[str, ...]], None]
) -> None:
    """For ever: `tell` which of `roles` nobody serves when nothing is heard, and again when others are missing."""
    told: tuple[str, ...] = ()
    while True:
        await asyncio.sleep(max(QUIET_S - quiet.seconds, LOOK_S))
        if quiet.seconds < QUIET_S:
            continue
        with suppress(BusError):  # no server for the moment: others say so
            missing = await unserved(bus, run, roles)
            if missing and missing != told and quiet.seconds >= QUIET_S:
                tell(missing)
            told = missing

"""What `resia worker held` shows: how far each role's share of a run is, and who works on what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from .bus import ACK_WAIT_S, Bus, Held
from .holding import Holding, Pace, heard
from .permissions import WORKERS
from .server import grants_of
from .store import Store, opened, require_run
from .views import Shown

NEEDED = ("meta", "task", "feedback")  # by every run
LISTEN_S = ACK_WAIT_S / 3 + 1.0  # a worker speaks three times in ACK_WAIT_S


async def held_view(store: Store, run: str | None) -> Shown:
    """All active runs, or one. Takes as long as a worker may be silent."""
    durables = [*WORKERS, *(grant.login for grant in ([] if store.nats else grants_of(store.folder)))]
    async with opened(store) as bus:
        if run is not None:
            await require_run(bus, run)
        runs = [run] if run else [entry.run for entry in await bus.runs() if entry.status == "active"]
        holding = await _listen(bus, run or "*")
        shown = [await _of_run(bus, name, durables, [h for h in holding if h.run == name]) for name in runs]
    lines = [line for found, _ in shown for line in found]
    return Shown(tuple(lines), tuple(text for _, texts in shown for text in texts) or ("no run is active",))


async def _listen(bus: Bus, run: str) -> list[Holding]:
    holding: dict[tuple[str, str], Holding] = {}  # the last word of each worker
    with suppress(TimeoutError):
        async with asyncio.timeout(LISTEN_S):
            async for data in bus.live(run):
                if found := heard(data):
                    holding[found.run, found.worker] = found
    return list(holding.values())


async def _of_run(
    bus: Bus, run: str, durables: Sequence[str], holding: Sequence[Holding]
) -> tuple[list[object], list[str]]:
    """JSON lines and texts."""
    pace = Pace()
    if holding:  # the log is read for nothing else
        async for fact in bus.read(run):
            pace.saw(fact)
    found = [held for held in [await bus.held(run, name) for name in durables] if held is not None]
    slow = [pace.slow(held) for held in holding]
    lines: list[object] = [{"run": run, **held._asdict()} for held in found]
    lines += [{**msgspec.to_builtins(held), "slow": why} for held, why in zip(holding, slow, strict=True)]
    workers = [
        f"  {held.worker} on {held.sequence} ({held.type}) for {held.held_s:.0f} s{f': slow, {why}' if why else ''}"
        for held, why in zip(holding, slow, strict=True)
    ]
    unseen = [name for name in NEEDED if name not in {held.durable for held in found}]
    nobody = [f"  {', '.join(unseen)}: no process has served the run yet"] if unseen else []
    return lines, [run, *map(_text, found), *nobody, *workers]


def _text(held: Held) -> str:
    again = f", {held.again} of them handed out again" if held.again else ""
    return f"  {held.durable}: {held.waiting} waiting, {held.in_hand} in hand{again}, {held.idle} idle"

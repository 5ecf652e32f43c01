"""How the nodes of a cluster stand, as a log of theirs sees them."""

from __future__ import annotations

import asyncio

import msgspec

from resia.events.errors import BusError, UsageError
from resia.runtime.bus import Bus, reach
from resia.runtime.connecting import target_of
from resia.runtime.logins import access_to
from resia.runtime.permissions import Access
from resia.runtime.protocol import Member
from resia.runtime.store import require_run


async def looked(nats: str | None, run: str | None) -> list[Member]:
    """Servers that hold the log of `run`, or the registry of runs; one nameless member where a server stands alone.

    Empty where a cluster holds no registry, since nobody has begun a run.
    Any login may ask. Raises UsageError and BusError as connecting does, UnknownName for a run that is not there.
    """
    if nats is None:
        raise UsageError("name the cluster with --nats FILE, a login file of resia cluster init")
    access = access_to(nats)
    bus = await reach(access, access.looker)
    try:
        return await _members(bus, run)
    except BusError as cause:
        if not bus.is_clustered:
            raise
        raise BusError(f"{cause}: {await _answering(access)}") from cause
    finally:
        await bus.close()


async def _answering(access: Access) -> str:
    """Which nodes can be reached, each asked by itself: without a leader none knows of the others."""

    async def one(url: str) -> str:
        named = target_of(url, "", "", "").address
        try:
            await (await reach(msgspec.structs.replace(access, url=url), access.looker)).close()
        except BusError:
            return f"{named} does not answer"
        return f"{named} answers"

    return ", ".join(await asyncio.gather(*map(one, access.url.split(","))))


async def _members(bus: Bus, run: str | None) -> list[Member]:
    if run is not None:
        await require_run(bus, run)
    return await bus.members(run) or ([] if bus.is_clustered else [Member("the server", True, True)])

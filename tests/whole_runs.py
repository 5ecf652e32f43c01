"""Whole runs in one process: a real server, the real workers of every role, each run to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from fixture_domains import Remembering

from resia.events import RunSettings
from resia.runtime.bus import Bus, connect
from resia.runtime.reading import Log, read_log
from resia.runtime.resources import Resources
from resia.runtime.roles import ROLE_NAMES, role
from resia.runtime.server import Access
from resia.runtime.session import first_event
from resia.runtime.worker import Clerk, Worker

LIMIT_S = 120


class Quick(Resources):
    """One process's resources, whose sandbox is asked once for each text."""

    def agent_ports(self, request, live):
        ports = super().agent_ports(request, live)
        if not hasattr(self, "_remembering"):
            self._remembering = Remembering(ports.sandbox())
        return ports._replace(sandbox=lambda: self._remembering)


async def play_all(access: Access, resources: Resources, runs: Mapping[str, RunSettings]) -> dict[str, Log]:
    """Every run of `runs`, one after the other; closes `resources`."""
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    try:
        return {run: await play(bus, run, settings, resources) for run, settings in runs.items()}
    finally:
        resources.close()
        await bus.close()


async def play(bus: Bus, run: str, settings: RunSettings, resources: Resources) -> Log:
    """One worker a role until the run has ended."""
    await bus.create_run(run)
    await bus.append(run, [Clerk(run, "user", "test", "0", time.time).genesis(first_event(settings, None))])
    roles = {name: role(name, resources, lambda _: lambda _: None) for name in ROLE_NAMES}
    workers = [Worker(bus, roles[name], Clerk(run, name, f"{name}-1", "0", time.time)) for name in ROLE_NAMES]
    await asyncio.wait_for(asyncio.gather(*(worker.serve() for worker in workers)), LIMIT_S)
    log = await read_log(bus, run)
    await bus.set_status(run, log.at().status)
    await bus.seal(run)
    return log

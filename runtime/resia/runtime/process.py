"""One worker process: connect as its role, serve until told to stop. Run as `python -m resia.runtime.process FILE`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from resia.events.errors import ResiaError

from .attending import serve_runs
from .bus import Bus, connect
from .config import ProcessConfig
from .leaving import leaves, until_told
from .logs import configure_logs
from .ranks import dismiss, follow_rank_0, join, place_here
from .resources import package_version
from .roles import role
from .shared_blobs import blobs_at
from .shift import Shift
from .skew import warn_of_clock
from .watching import Watching, watching
from .worker import Clerk, Worker

BEAT_S = 5.0  # between two signs of life: see Supervisor


def live_publisher(bus: Bus, name: str, shift: Shift) -> Callable[[str], Callable[[dict[str, Any]], None]]:
    """Publish progress from the thread that performs; a progress message that is lost costs nothing."""
    loop = asyncio.get_running_loop()

    async def say(run: str, data: dict[str, Any]) -> None:
        shift.progressed()
        await bus.publish_live(run, name, data)

    def live_of(run: str) -> Callable[[dict[str, Any]], None]:
        def publish(data: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(say(run, data), loop)

        return publish

    return live_of


async def serve(config: ProcessConfig, shift: Shift, strict: bool = True) -> None:
    """Serve `config.run`, or every active run, until the run or the shift is over. See `watching` for `strict`."""
    with watching(config.role, config.worker, config.metrics, strict) as watched:
        await _serve(config, shift, watched)


async def _serve(config: ProcessConfig, shift: Shift, watched: Watching) -> None:
    ranks = join(place_here(config.role))
    beating = asyncio.create_task(_beat(config.beat))
    bus = watched.bus(await connect(config.url, config.user, config.password, ca=config.ca))
    await warn_of_clock(bus, time.time)
    blobs = blobs_at(config.blobs, config.access)
    resources = watched.resources(blobs, config.cache, config.unsafe_local, ranks)
    chosen = role(config.role, resources, live_publisher(bus, config.role, shift))

    def clerk(run: str) -> Clerk:
        return Clerk(run, config.role, config.worker, package_version(), time.time)

    try:
        if config.run is None:
            await serve_runs(bus, chosen, clerk, shift)
        else:
            await Worker(bus, chosen, clerk(config.run), shift).serve()
    finally:
        beating.cancel()
        await bus.close()
    dismiss(ranks)


async def _beat(path: Path | None) -> None:
    """Show whoever started this process that it is not frozen."""
    while path is not None:
        await asyncio.to_thread(path.touch)
        await asyncio.sleep(BEAT_S)


def main(path: str) -> int:
    """Exit code 0 when the run has ended, 1 when something broke (the reason is the last log line), 143 on SIGTERM."""
    config = ProcessConfig.model_validate_json(Path(path).read_text())
    configure_logs()
    log = structlog.get_logger().bind(role=config.role, worker=config.worker)
    log.info("started", run=config.run)

    async def work() -> int:
        shift = Shift(config.stalled_s, config.max_runs)
        return await until_told(lambda: serve(config, shift, strict=False), shift, config.grace_s)

    code = 1
    try:
        if (place := place_here(config.role)).rank > 0:
            follow_rank_0(place, config.cache)
            return 0
        code = asyncio.run(work())
    except* ResiaError as group:
        for cause in leaves(group):
            log.error("failed", error=f"{cause}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

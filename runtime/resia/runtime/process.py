"""One worker process: connect as its role, serve until told to stop. Run as `python -m resia.runtime.process FILE`."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from resia.events.errors import ResiaError

from .blobs import DirectoryBlobs
from .bus import Bus, connect
from .config import ProcessConfig
from .logs import configure_logs
from .ranks import dismiss, follow_rank_0, join, place_here
from .resources import package_version
from .roles import role
from .skew import warn_of_clock
from .watching import Watching, watching
from .worker import Clerk, Worker, cancelled, serve_runs

STOPPED = 128 + signal.SIGTERM


def live_publisher(bus: Bus, name: str) -> Callable[[str], Callable[[dict[str, Any]], None]]:
    """Publish progress from the thread that performs; a progress message that is lost costs nothing."""
    loop = asyncio.get_running_loop()

    def live_of(run: str) -> Callable[[dict[str, Any]], None]:
        def publish(data: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(bus.publish_live(run, name, data), loop)

        return publish

    return live_of


async def serve(config: ProcessConfig, strict: bool = True) -> None:
    """Serve `config.run`, or every active run. See `watching` for `strict`."""
    with watching(config.role, config.worker, config.metrics, strict) as watched:
        await _serve(config, watched)


async def _serve(config: ProcessConfig, watched: Watching) -> None:
    ranks = join(place_here(config.role))
    bus = watched.bus(await connect(config.url, config.user, config.password))
    await warn_of_clock(bus, time.time)
    resources = watched.resources(DirectoryBlobs(config.blobs), config.cache, config.unsafe_local, ranks)
    chosen = role(config.role, resources, live_publisher(bus, config.role))

    def clerk(run: str) -> Clerk:
        return Clerk(run, config.role, config.worker, package_version(), time.time)

    try:
        if config.run is None:
            await serve_runs(bus, chosen, clerk)
        else:
            await Worker(bus, chosen, clerk(config.run)).serve()
    finally:
        await bus.close()
    dismiss(ranks)


def main(path: str) -> int:
    """Exit code 0 when the run has ended, 1 when something broke (the reason is the last log line), 143 on SIGTERM."""
    config = ProcessConfig.model_validate_json(Path(path).read_text())
    configure_logs()
    log = structlog.get_logger().bind(role=config.role, worker=config.worker)
    log.info("started", run=config.run)

    async def until_stopped() -> int:
        loop, stopping = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        task = loop.create_task(serve(config, strict=False))
        loop.add_signal_handler(signal.SIGTERM, lambda: stopping.append(loop.create_task(cancelled([task]))))
        try:
            await task
        except asyncio.CancelledError:
            return STOPPED
        return 0

    code = 1
    try:
        if (place := place_here(config.role)).rank > 0:
            follow_rank_0(place, config.cache)
            return 0
        code = asyncio.run(until_stopped())
    except* ResiaError as group:
        for cause in _leaves(group):
            log.error("failed", error=f"{cause}")
    return code


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors inside a group of groups."""
    return [
        leaf
        for cause in group.exceptions
        for leaf in (_leaves(cause) if isinstance(cause, BaseExceptionGroup) else [cause])
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""One run of real processes over a real server in a folder of its own: started, disturbed, restarted, read back.

Everything is synchronous and single-threaded here, so that workers can be forked from a process that has imported
all they need: a restart takes milliseconds. The workers' own code is asynchronous, each in its own process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from resia.events import Logged, RunRequested
from resia.runtime.bus import Bus, reach
from resia.runtime.lifeline import die_with_parent
from resia.runtime.permissions import Access
from resia.runtime.server import EmbeddedServer
from resia.runtime.worker import Clerk

from . import actors
from .actors import Actor
from .strikes import SERVER, Point, alive, stage_points, write_pid

RUN = "chaos"  # one name, so that an event has the same id in every repetition
TICK_S = 0.01
LIMIT_S = 120.0


class Server(Protocol):
    """Who keeps the log: one process, or several."""

    def start(self) -> Access:
        """Start, and wait until it answers."""
        ...

    @property
    def pids(self) -> dict[str, int]:
        """Processes that run, by name."""
        ...

    def revive(self) -> int | None:
        """Start what has died; an exit code, None when all are alive."""
        ...

    def stop(self) -> None:
        """Stop all, cleanly."""
        ...


class Single(EmbeddedServer):
    """The embedded server."""

    @property
    def pids(self) -> dict[str, int]:
        return {SERVER: self.pid} if self.pid is not None else {}


class Stage:
    """Server and workers of one run. Use as a context: whatever still runs at its end is killed."""

    def __init__(
        self,
        folder: Path,
        cast: Sequence[Actor],
        points: Sequence[Point] = (),
        store: Path | None = None,
        server: Server | None = None,
    ):
        self.folder, self._cast = folder, {actor.name: actor for actor in cast}
        folder.mkdir(parents=True, exist_ok=True)
        stage_points(folder, list(points))
        self.store = store or folder / "store"
        self.server = server or Single(self.store)
        self.access = self.server.start()
        self._announce_server()
        self._pids: dict[str, int] = {}
        self.restarts = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_workers()
        self.server.stop()

    # -- the log ---------------------------------------------------------------------------------------------------

    def ask(self, what: Callable[[Bus], Coroutine[Any, Any, Any]], role: str = "admin") -> Any:
        """Result of `what` on a connection of its own."""

        async def asking() -> Any:
            bus = await reach(self.access, role)
            try:
                return await what(bus)
            finally:
                await bus.close()

        return asyncio.run(asking())

    def begin(self, request: RunRequested) -> None:
        async def beginning(bus: Bus) -> None:
            await bus.create_registry()
            await bus.create_run(RUN)
            await bus.append(RUN, [Clerk(RUN, "user", "chaos", "chaos", time.time).genesis(request)])

        self.ask(beginning)

    def log(self) -> list[Logged]:
        async def reading(bus: Bus) -> list[Logged]:
            return [fact async for fact in bus.read(RUN)]

        log: list[Logged] = self.ask(reading)
        return log

    def state(self) -> str:
        """Who still runs, for a run that does not end."""
        return f"{', '.join(sorted(self._pids)) or 'nobody'} still there after {self.restarts} restarts"

    # -- processes -------------------------------------------------------------------------------------------------

    def play(self, tick: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S) -> bool:
        """Start the cast and restart whatever dies until all have left; False when that takes longer than `limit_s`.

        `tick` is called every 10 ms; True from it ends the play with everything as it is.
        """
        deadline = time.monotonic() + limit_s
        for name in self._cast:
            if name not in self._pids and not (self.folder / f"{name}.left").exists():
                self._start(name)
        while self._pids:
            if time.monotonic() > deadline:
                return False
            if tick():
                return True
            self._reap()
            if self.server.revive() is not None:
                self._announce_server()
                self.restarts += 1
            time.sleep(TICK_S)
        return True

    def pid(self, name: str) -> int | None:
        return {**self.server.pids, **self._pids}.get(name)

    def kill(self, name: str) -> bool:
        """SIGKILL; whether there was anybody."""
        pid = self.pid(name)
        if pid is None or not alive(pid):
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def kill_workers(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._pids.clear()

    def kill_server(self) -> None:
        pid = self.server.pids[SERVER]
        self.kill(SERVER)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def revive_server(self) -> None:
        if not self.server.pids:  # it was given up
            self.server.start()
        else:
            while self.server.revive() is None:
                time.sleep(TICK_S)
        self._announce_server()

    def _start(self, name: str) -> None:
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            os._exit(actors.main(self.folder, self.access, RUN, self._cast[name]))
        self._pids[name] = pid

    def _reap(self) -> None:
        for name, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._pids[name]
            if status == 0:
                (self.folder / f"{name}.left").touch()
            else:
                self.restarts += 1
                self._start(name)

    def _announce_server(self) -> None:
        for name, pid in self.server.pids.items():
            write_pid(self.folder, name, pid)

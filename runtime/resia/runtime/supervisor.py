"""Keeps one process a role (or more) alive: starts them, restarts what dies, stops them cleanly."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import BusError

from .config import ProcessConfig
from .lifeline import die_with_parent

MAX_RESTARTS = 5  # of one process, in a row, before the run is given up (and can be resumed)
STEADY_S = 60.0  # a process that lived this long starts its count anew
FROZEN_S = 300.0  # without a sign of life, then SIGKILL; its work has long gone to others, where there are any
LOOK_S = 5.0
STOP_S = 3.0  # then SIGKILL: whatever was in hand is done again by who comes next


class Died(NamedTuple):
    """A worker process that ended and was started again. `code` is negative for a signal."""

    worker: str
    code: int
    pid: int


class Supervisor:
    """Worker processes over one log. `on_death` hears of every restart."""

    def __init__(self, folder: Path, threads: int, on_death: Callable[[Died], None]) -> None:
        self._folder, self._threads, self._on_death = folder, threads, on_death
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def pid(self, worker: str) -> int | None:
        """Process id of a worker that is running."""
        process = self._running.get(worker)
        return process.pid if process and process.returncode is None else None

    async def keep(self, config: ProcessConfig) -> None:
        """Run one worker until it ends well; raises BusError when it keeps failing, with its last words."""
        restarts, loop = 0, asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            process = await self._start(config)
            self._running[config.worker] = process
            if self._stopping.is_set():  # it was being started when the others were stopped
                process.kill()
            code = await self._end_of(process, config.worker)
            if code == 0 or self._stopping.is_set():
                return
            restarts = 0 if loop.time() - started > STEADY_S else restarts + 1
            if restarts > MAX_RESTARTS:
                raise BusError(f"{config.worker} keeps failing: {self._last_words(config.worker)}")
            self._on_death(Died(config.worker, code, process.pid))
            await asyncio.sleep(min(0.1 * 2 ** (restarts - 1), 5.0))

    async def _end_of(self, process: asyncio.subprocess.Process, worker: str) -> int:
        """Wait for the process to end, and kill it when it is frozen: stopped, or held up by what it performs."""
        end = asyncio.create_task(process.wait())
        loop, beat = asyncio.get_running_loop(), self._beat(worker)
        seen, since = _touched(beat), loop.time()
        try:
            while not (await asyncio.wait([end], timeout=LOOK_S))[0]:
                if (now := _touched(beat)) != seen:
                    seen, since = now, loop.time()
                elif loop.time() - since > FROZEN_S:
                    process.kill()
                    since = loop.time()
            return end.result()
        finally:
            end.cancel()

    async def _start(self, config: ProcessConfig) -> asyncio.subprocess.Process:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{config.worker}.json"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds the role's password
        with os.fdopen(handle, "w") as sink:
            sink.write(config.model_copy(update={"beat": self._beat(config.worker)}).model_dump_json())
        with self._log(config.worker).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # no file of the present folder may stand for a module
                "-m",
                "resia.runtime.process",
                str(path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops the workers in order
                preexec_fn=die_with_parent,
            )

    def _environment(self) -> dict[str, str]:
        """Spinning threads of one process starve the others on few cores; nothing may ask a model hub."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }

    def _log(self, worker: str) -> Path:
        return self._folder / f"{worker}.log"

    def _beat(self, worker: str) -> Path:
        return self._folder / f"{worker}.beat"

    def _last_words(self, worker: str) -> str:
        lines = self._log(worker).read_text(errors="replace").strip().splitlines()
        return _words(lines[-1]) if lines else "it said nothing"

    async def ended(self, within_s: float) -> None:
        """Wait until all have ended by themselves, as they do when the run has; for `within_s` at most."""
        ends = [asyncio.create_task(p.wait()) for p in self._running.values() if p.returncode is None]
        self._stopping.set()  # none is started again
        if ends:
            _, waiting = await asyncio.wait(ends, timeout=within_s)
            for end in waiting:
                end.cancel()

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that stay; none is left when it returns."""
        self._stopping.set()
        alive = [p for p in self._running.values() if p.returncode is None]
        for process in alive:
            process.terminate()
        ends = [asyncio.create_task(process.wait()) for process in alive]
        if ends and (await asyncio.wait(ends, timeout=STOP_S))[1]:
            for process in alive:
                if process.returncode is None:
                    process.kill()
            await asyncio.wait(ends)


def _words(line: str) -> str:
    """What a line of a worker's log says: its error, where it is one of ours, else the end of the line."""
    try:
        return str(json.loads(line)["error"])
    except (ValueError, LookupError, TypeError):
        return line[-400:]


def _touched(path: Path) -> int:
    """When the file was changed, 0 where there is none. What the number says does not matter, only that it moves."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0

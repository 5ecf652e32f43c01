"""Where a run is disturbed: points named by the events of the undisturbed run, each struck once.

The process that is about to append (or has just appended) the events of a boundary strikes, so a point is exact
whatever the machine's speed. Points and strikes are files, because the striker may be the one that dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

SERVER = "nats-server"
SELF = "self"  # whoever strikes
LEADER = "leader"  # the node of a cluster that leads the run's log when it is struck
UP_WITHIN_S = 10.0
Moment = Literal["before", "amid", "after", "unacked"]


class Boundary(msgspec.Struct, frozen=True):
    """One batch that the undisturbed run appended: its events, who wrote it, and its first event's number."""

    role: str
    ids: tuple[str, ...]
    sequence: int


class Point(msgspec.Struct, frozen=True):
    """Send `signal` to `target` at a `moment` of the boundary that begins with event `event`.

    before, after: the append. amid: members of the batch are sent and the last is not. unacked: the event was handled
    and its acknowledgement has not been sent. Targets are workers' names, the server, and the striker itself.
    """

    number: int
    event: str
    moment: Moment
    target: str
    signal: int = signal.SIGKILL
    striker: str | None = None  # the worker that strikes; None: whoever comes first


class Strikes:
    """The points of one run, in `folder`, for the worker called `name`."""

    def __init__(self, folder: Path, name: str, leader: Callable[[], Awaitable[str]] | None = None) -> None:
        self._folder, self._name, self._leader = folder, name, leader
        points = msgspec.json.decode((folder / "points.json").read_bytes(), type=list[Point])
        self._points = {(point.event, point.moment): point for point in points if point.striker in (None, name)}

    async def at(self, moment: Moment, *events: str) -> None:
        """Strike if a point is here and was not struck before."""
        for event in events:
            point = self._points.get((event, moment))
            if point is not None and self._claim(point):
                await self._strike(point)

    def _claim(self, point: Point) -> bool:
        try:
            os.close(os.open(self._folder / f"claimed-{point.number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    async def _strike(self, point: Point) -> None:
        pid = os.getpid() if point.target in (SELF, self._name) else await self._pid(point.target)
        if pid is None:
            (self._folder / f"moot-{point.number}").touch()
            return
        (self._folder / f"struck-{point.number}").write_text(str(pid))
        os.kill(pid, point.signal)

    async def _pid(self, target: str) -> int | None:
        """Process id of `target` once it is up; None when it has done its work and left."""
        if target == LEADER and self._leader is not None:
            target = await self._leader()
        deadline = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < deadline:
            if (self._folder / f"{target}.left").exists():
                return None
            pid = read_pid(self._folder, target)
            if pid is not None and alive(pid):
                return pid
            await asyncio.sleep(0.005)
        return None


def stage_points(folder: Path, points: list[Point]) -> None:
    (folder / "points.json").write_bytes(msgspec.json.encode(points))


def struck(folder: Path, number: int | str = "*") -> int:
    """How many points were struck: signals that reached a process."""
    return len(list(folder.glob(f"struck-{number}")))


def moot(folder: Path) -> int:
    """How many points could not be struck because their target had done its work and left."""
    return len(list(folder.glob("moot-*")))


def write_pid(folder: Path, name: str, pid: int) -> None:
    partial = folder / f".{name}.pid"
    partial.write_text(str(pid))
    partial.replace(folder / f"{name}.pid")


def read_pid(folder: Path, name: str) -> int | None:
    path = folder / f"{name}.pid"
    return int(path.read_text()) if path.exists() else None


def alive(pid: int) -> bool:
    """Whether the process runs: one that died and was not waited for does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX"

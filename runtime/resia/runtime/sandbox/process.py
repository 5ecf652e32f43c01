"""The Sandbox port over processes: one locked-down guest a run, and a verdict on how it ended.

Collaborators: `server` (where guests come from), `dialogue` (what is said), `tier` (what holds here). Calls may come
from several threads and run side by side.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from resia.agents.ports import Json, Ran, Tool
from resia.events.errors import BoundaryError, UsageError
from resia.runtime.sandbox import wire
from resia.runtime.sandbox.dialogue import Dialogue, Gone, failed
from resia.runtime.sandbox.limits import SandboxLimits
from resia.runtime.sandbox.server import Died, Ended, Server
from resia.runtime.sandbox.tier import CONFINED, NONE, UNSAFE, Tier, escapes

_TRIAL_S = 30.0


class ProcessSandbox:
    """Runs generated source in a guest process of its own; see `resia.agents.ports.Sandbox`.

    Starting it tries the locks. Where they do not hold it raises UsageError, unless `unsafe_local`, which then runs
    generated code under resource limits alone. Close it, or use it as a context manager.
    """

    def __init__(self, limits: SandboxLimits | None = None, unsafe_local: bool = False) -> None:
        self.limits = limits or SandboxLimits()
        self._lock = threading.Lock()
        self._closed = False
        self._setup = self.limits.setup(confined=True)
        self.details = CONFINED
        if why := self._weakness():
            if not unsafe_local:
                raise UsageError(
                    f"this machine has no sandbox for generated code ({why}): use a Linux kernel with Landlock and"
                    " seccomp, or accept the risk with --unsafe-local"
                )
            self._setup = self.limits.setup(confined=False)
            self.details = UNSAFE
            self._server = Server(self._setup)

    def _weakness(self) -> str:
        """Start a confined server and try it; why it does not hold, or nothing."""
        try:
            self._server = Server(self._setup)
        except BoundaryError as error:
            return str(error)
        patient = msgspec.structs.replace(self.limits, wall_s=_TRIAL_S)
        if reached := escapes(partial(self._run, patient)):
            self._server.close()
            return f"generated code could {', '.join(reached)}"
        return ""

    @property
    def tier(self) -> str:
        """The name of what holds here: CONFINED's or UNSAFE's."""
        return self.details.name

    @property
    def server_pid(self) -> int:
        """The process id of the fork server, for a person who watches it."""
        return self._server.pid

    def run(self, source: str, entry: str, args: Sequence[Json], tools: Mapping[str, Tool] | None = None) -> Ran:
        """Define `source`, call `entry(*args)`, or `entry(*args, tools)` when tools are given.

        A tool's ValueError is raised again in the code and recorded in `calls` as {"error": message}; whatever else a
        tool raises ends the run and passes through. Wall time leaves out what tools take. Raises SandboxError
        (`failure` tool_error, timeout or sandbox_violation) for the code's failure, BoundaryError for the sandbox's.
        """
        return self._run(self.limits, source, entry, args, tools)

    def _run(
        self,
        limits: SandboxLimits,
        source: str,
        entry: str,
        args: Sequence[Json],
        tools: Mapping[str, Tool] | None = None,
    ) -> Ran:
        server, pid, near = self._spawn()
        with near:
            try:
                ran = Dialogue(near, limits, tools).hold(source, entry, args)
            except Gone as gone:
                raise self._verdict(server.reap(pid), gone.ready) from None
            except BaseException:
                _end(server, pid)
                raise
        _end(server, pid)
        return ran

    def _spawn(self) -> tuple[Server, int, socket.socket]:
        """A new guest; a server that has died is replaced once. Raises BoundaryError."""
        with self._lock:
            if self._closed:
                raise BoundaryError("the sandbox is closed")
            try:
                return self._server, *self._server.spawn()
            except Died:
                self._server.close()
                self._server = Server(self._setup)
                return self._server, *self._server.spawn()

    def _verdict(self, ended: Ended, ready: bool) -> BoundaryError:
        """Why a guest that did not answer did not."""
        if not ready:
            return BoundaryError("the sandbox could not lock a new process down")
        if ended.signal == signal.SIGXCPU or (ended.signal == signal.SIGKILL and ended.cpu_s >= self.limits.cpu_s):
            return failed("timeout", f"used more than {self.limits.cpu_s} s of CPU")
        if ended.code == wire.EXIT_MEMORY:
            return failed("sandbox_violation", f"needs more than {self.limits.memory_bytes // 2**20} MiB of memory")
        if ended.signal:
            return failed("sandbox_violation", f"killed by {signal.Signals(ended.signal).name}")
        return failed("tool_error", f"ended without an answer (exit code {ended.code})")

    def close(self) -> None:
        """End the fork server and every run; a second time does nothing."""
        with self._lock:
            self._closed = True
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(server: Server, pid: int) -> None:
    """Reap a guest whose outcome is known already, so a server that died meanwhile has taken nothing from it."""
    try:
        server.reap(pid)
    except Died:
        return


def probe() -> Tier:
    """What holds on this machine, by trying it: CONFINED or NONE."""
    try:
        with ProcessSandbox() as sandbox:
            return sandbox.details
    except UsageError:
        return NONE

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
from typing import NamedTuple, Self

import msgspec

from resia.agents.ports import Json, Ran, Tool
from resia.events.errors import BoundaryError, UsageError
from resia.runtime.sandbox import wire
from resia.runtime.sandbox.dialogue import Dialogue, Gone, failed, reached
from resia.runtime.sandbox.limits import SandboxLimits
from resia.runtime.sandbox.server import Died, Ended, Server
from resia.runtime.sandbox.tier import NONE, TIERS, UNSAFE, Tier, escapes, laid
from resia.runtime.sandbox.wire import Bait

_TRIAL_S = 30.0
# Guests kept forked and locked ahead, a megabyte each: the rollouts of a shard come together, and one takes two.
WARM = 16


class Unsandboxed(UsageError):
    """No tier holds here; `passed_over` says why, by name. The sentence gives the reason of the least demanding one."""

    def __init__(self, passed_over: dict[str, str]) -> None:
        why = next(reversed(passed_over.values()), "none was tried")
        super().__init__(
            f"this machine has no sandbox for generated code ({why}): use a Linux kernel with Landlock and seccomp, or"
            " accept the risk with --unsafe-local"
        )
        self.passed_over = passed_over


class ProcessSandbox:
    """Runs generated source in a guest process of its own; see `resia.agents.ports.Sandbox`.

    Starting it tries `tiers` in order and takes the first that holds; `passed_over` says of those before it, by name,
    why they do not. Where none holds it raises UsageError, unless `unsafe_local`, which then runs generated code under
    resource limits alone. `warm` guests wait ahead of their runs. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        unsafe_local: bool = False,
        tiers: Sequence[Tier] = TIERS,
        warm: int = WARM,
    ) -> None:
        self.limits = limits or SandboxLimits()
        self._lock = threading.Lock()
        self._closed = False
        self._warm = warm
        self.passed_over: dict[str, str] = {}
        for tier in tiers:
            if not (why := self._weakness(tier)):
                return
            self.passed_over[tier.name] = why
        if not unsafe_local:
            raise Unsandboxed(self.passed_over)
        self.details = UNSAFE
        self._server = self._start()

    def _start(self, bait: Bait | None = None) -> Server:
        return Server(self.limits.setup(self.details.confined, self._warm, bait), self.details.enclosed)

    def _weakness(self, tier: Tier) -> str:
        """Start a server of `tier` and try it; why it does not hold, or nothing."""
        self.details = tier
        with laid() as bait:
            try:
                self._server = self._start(bait if tier.enclosed else None)
            except BoundaryError as error:
                return str(error)
            patient = msgspec.structs.replace(self.limits, wall_s=_TRIAL_S)
            out = escapes(bait, partial(self._run, patient))
        if out:
            self._server.close()
            return f"generated code could {', '.join(out)}"
        return ""

    @property
    def tier(self) -> str:
        """The name of what holds here: that of one of `tiers`, or UNSAFE's."""
        return self.details.name

    @property
    def server_pid(self) -> int:
        """The id of the process that was started, for a person who watches it: the fork server, or its bwrap."""
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
                server.end(pid)
                raise
        server.end(pid)
        return ran

    def _spawn(self) -> tuple[Server, int, socket.socket]:
        """A new guest; a server that has died is replaced once. Raises BoundaryError."""
        with self._lock:
            if self._closed:
                raise BoundaryError("the sandbox is closed")
            try:
                return self._server, *self._server.take()
            except Died:
                self._server.close()
                self._server = self._start()
                return self._server, *self._server.take()

    def _verdict(self, ended: Ended, ready: bool) -> BoundaryError:
        """Why a guest that did not answer did not."""
        if not ready:
            return BoundaryError("the sandbox could not lock a new process down")
        if ended.signal == signal.SIGXCPU or (ended.signal == signal.SIGKILL and ended.cpu_s >= self.limits.cpu_s):
            return reached("cpu_limit", f"used more than {self.limits.cpu_s} s of CPU")
        if ended.code == wire.EXIT_MEMORY:
            return reached("memory_limit", f"needs more than {self.limits.memory_bytes // 2**20} MiB of memory")
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


class Probe(NamedTuple):
    """The tier that holds, NONE where none does, and why each that was tried before it does not, by name."""

    tier: Tier
    passed_over: dict[str, str]


def probe() -> Probe:
    """What holds on this machine, found by trying it."""
    try:
        with ProcessSandbox(warm=1) as sandbox:
            return Probe(sandbox.details, sandbox.passed_over)
    except Unsandboxed as error:
        return Probe(NONE, error.passed_over)

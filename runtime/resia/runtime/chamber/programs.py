"""The chamber of programs: numpy and scipy in a locked process of its own for every call, arrays through shared memory.

Collaborators: `forks` (servers and guests), `tiers`, and inside `program_guest`. The memory holds the arguments and
room for the output, and nothing else of this process is shared.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from resia.domains.programs import Program, ProgramLimits
from resia.events.errors import SandboxError, UsageError
from resia.runtime.sandbox import wire

from .forks import FOLDERS, START_S, Forks, Guest, Kind, Talk
from .tiers import ATTEMPTS, Tier, candidates

# Loaded before the first fork, where installed; any other module of an installed package is loaded by the call.
LIBRARIES = (
    "scipy.linalg",
    "scipy.sparse.linalg",
    "scipy.spatial",
    "scipy.special",
    "sklearn.decomposition",
    "sklearn.neighbors",
)
SETUP = {"device": "cpu", "threads": 1}
_ALIGNMENT = 4096
_TRIED = "def reach(X):\n    return X\n"


class ProgramChamber:
    """Implements `resia.domains.programs.ProgramRunner`. Raises UsageError where nothing holds, unless `unsafe_local`.

    Close it, or use it as a context manager. Programs run one at a time, so that one does not time out another.
    """

    def __init__(
        self, unsafe_local: bool = False, libraries: Sequence[str] = LIBRARIES, tiers: Sequence[Tier] | None = None
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise UsageError("programs as answers share their arrays as Linux does: run them on Linux")
        self._lock = threading.Lock()
        folders = tuple(FOLDERS.values())
        kind = Kind("program", "resia.runtime.chamber.program_guest", FOLDERS, {**SETUP, "libraries": libraries})
        tried = candidates("cpu", folders) if tiers is None else tiers
        self._forks = Forks(kind, tried, _attempt, unsafe_local)

    @property
    def tier(self) -> str:
        """The name of what holds here."""
        return self._forks.tier

    def run(self, program: Program) -> NDArray[np.float64]:
        """See `resia.domains.programs.ProgramRunner.run`."""
        with self._lock:
            return _run(self._forks, program)

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._forks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _attempt(forks: Forks, known: str) -> None:
    """The tier's own trial: what reaches something raises."""
    tried = Program(known + ATTEMPTS + _TRIED, "reach", {"X": np.ones((2, 2))}, (2, 2), limits=ProgramLimits(START_S))
    _run(forks, tried)


def _run(forks: Forks, program: Program) -> NDArray[np.float64]:
    with _Memory(program) as memory, forks.guest(memory.fd) as talk:
        called = _Called(talk, program.limits)
        try:
            called.run(program, memory.order)
        finally:
            called.end()  # so that nobody writes to the memory any more
        return memory.output()


class _Called(Guest):
    """One call in its guest."""

    FAILURES: ClassVar[Collection[str]] = ("wrong", "tool_error", "sandbox_violation", "memory_limit")
    UNKNOWN: ClassVar[str] = "tool_error"

    def __init__(self, talk: Talk, limits: ProgramLimits) -> None:
        super().__init__(talk, limits.cpu_s)
        self._limits = limits
        self._say({"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes})
        self._begun()

    def run(self, program: Program, order: dict[str, Any]) -> None:
        """Raises SandboxError as `ProgramRunner.run` does."""
        self._patience(self._limits.wall_s)
        try:
            self._say({"source": program.source, "entry": program.entry, "seed": program.seed, **order})
            self._heard("done")
        except SandboxError as cause:
            if cause.failure == "memory_limit":
                raise SandboxError("sandbox_violation", str(cause), "memory_limit") from None
            raise

    def _verdict(self) -> SandboxError:
        """Out of memory where Python had not enough of it left to say so."""
        found = super()._verdict()
        if os.waitstatus_to_exitcode(self.end()[0]) == wire.EXIT_MEMORY:
            return SandboxError("sandbox_violation", "used more memory than it may", "memory_limit")
        return found


class _Memory:
    """A program's arrays as its process will find them, and NaN where its output will be."""

    def __init__(self, program: Program) -> None:
        self._shape, end, places = program.shape, 0, dict[str, tuple[int, str, tuple[int, ...]]]()
        arrays = {name: np.ascontiguousarray(v) for name, v in program.arguments.items() if isinstance(v, np.ndarray)}
        for name, array in arrays.items():
            places[name] = (end, array.dtype.str, array.shape)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._at, size = end, end + 8 * int(np.prod(self._shape))
        self.order = {
            "arguments": [
                ("array", name) if name in arrays else ("value", value) for name, value in program.arguments.items()
            ],
            "arrays": places,
            "shape": self._shape,
            "output": end,
            "bytes": size,
        }
        self.fd = os.memfd_create("resia-program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        # Cut short from the other side, it would end this process when it is read.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = mmap.mmap(self.fd, size)
        for name, array in arrays.items():
            offset = places[name][0]
            self._memory[offset : offset + array.nbytes] = array.tobytes()
        np.frombuffer(self._memory, np.float64, offset=self._at)[...] = np.nan

    def output(self) -> NDArray[np.float64]:
        """A copy of what was handed over."""
        return np.frombuffer(self._memory, np.float64, offset=self._at).reshape(self._shape).copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

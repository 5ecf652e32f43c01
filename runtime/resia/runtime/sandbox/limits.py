"""What one run of generated source may use. Knows nothing of how a limit is enforced."""

from __future__ import annotations

from typing import Literal

import msgspec

from resia.events.errors import UsageError
from resia.runtime.sandbox.wire import Bait, Setup

# What a run that reached a limit is told, first word of its message.
Limit = Literal["wall_limit", "cpu_limit", "memory_limit", "output_limit", "call_limit"]
LEAST_MEMORY_BYTES = 64 * 2**20
LEAST_MESSAGE_BYTES = 4096
LEAST_OPEN_FILES = 8


class SandboxLimits(msgspec.Struct, frozen=True):
    """Limits of one run.

    `wall_s` counts the code's own seconds, not those its tools take; `cpu_s` whole CPU seconds; `memory_bytes` the
    whole address space, interpreter included; `message_bytes` one JSON message, either way; `tool_calls` the calls
    of tools; `open_files` the descriptors. Raises UsageError for a limit under which nothing can run. A limit that is
    reached ends the run with a SandboxError whose `limit` names it, see `Limit`.
    """

    wall_s: float = 5.0
    cpu_s: int = 4
    memory_bytes: int = 512 * 2**20
    message_bytes: int = 2**20
    tool_calls: int = 64
    open_files: int = 32

    def __post_init__(self) -> None:
        least = {
            "cpu_s": 1,
            "memory_bytes": LEAST_MEMORY_BYTES,
            "message_bytes": LEAST_MESSAGE_BYTES,
            "tool_calls": 0,
            "open_files": LEAST_OPEN_FILES,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UsageError(f"sandbox limit {name} is {getattr(self, name)}: give at least {minimum}")
        if self.wall_s <= 0:
            raise UsageError(f"sandbox limit wall_s is {self.wall_s}: give more than 0 seconds")

    def setup(self, confined: bool, warm: int, bait: Bait | None = None) -> Setup:
        """The part that the inside enforces on itself before any generated source is there; see Setup."""
        return Setup(confined, self.cpu_s, self.memory_bytes, self.message_bytes, self.open_files, warm, bait)

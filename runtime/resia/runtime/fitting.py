"""A word before a base is loaded that this machine's memory plainly cannot hold."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from resia.events import EngineSettings
from resia.events.errors import UsageError


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def warn_if_too_large(folder: Path, engine: EngineSettings, memory: int) -> None:
    """Log a warning where the model's weights alone are more than `memory` bytes. Says nothing of architectures whose
    size is not known."""
    from resia.trainers.memory import shape_of, weight_bytes

    try:
        needed = weight_bytes(shape_of(msgspec.json.decode((folder / "config.json").read_bytes())), engine.dtype)
    except UsageError:
        return
    if needed > memory:
        structlog.get_logger().warning(
            "the base does not fit into memory",
            model=engine.model,
            weights_gb=round(needed / 1e9, 2),
            memory_gb=round(memory / 1e9, 2),
        )

"""One kernel at a time on each device of this machine, whoever asks: a locked file a device, freed with its holder."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import platformdirs

from resia.domains.trimul.roofline import Device
from resia.events.errors import UsageError

POLL_S = 0.05


def lease_path(device: Device, folder: Path | None = None) -> Path:
    """The file that stands for `device`, the same for every process of this user."""
    known_by = device.unit or device.name.partition(",")[0]
    name = hashlib.sha256(known_by.encode()).hexdigest()[:16]
    return (folder or platformdirs.user_cache_path("resia")) / "leases" / f"{device.kind}-{name}.lock"


@contextmanager
def lease(device: Device, folder: Path | None = None, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait until nobody else holds `device`, and hold it; `busy` is called once if somebody does. Raises UsageError
    where no lease can be kept."""
    path = lease_path(device, folder)
    with _opened(path) as handle:
        held = not _taken(handle.fileno())
        if held and busy is not None:
            busy()
        while held and not _taken(handle.fileno()):
            time.sleep(POLL_S)
        yield


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as cause:
        raise UsageError(
            f"the lease of this device cannot be kept in {path.parent} ({cause.strerror}): "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from cause


def _taken(descriptor: int) -> bool:
    """Not waiting in the kernel, where an interrupted command could not go."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

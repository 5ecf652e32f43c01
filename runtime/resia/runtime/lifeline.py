"""Children that end with the process that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends; elsewhere than on Linux, nothing.

    Runs between fork and exec, where nothing may be imported or loaded.
    """
    _signal_at_its_end(signal.SIGKILL)


def end_with_parent() -> None:
    """The same by SIGTERM, for a process that has children of its own to end."""
    _signal_at_its_end(signal.SIGTERM)


def _signal_at_its_end(number: int) -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)

"""The calls of Linux that Python does not wrap, through ctypes. Knows nothing of what they are used for."""

from __future__ import annotations

import ctypes
import os
import struct

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(what: str, number: int, *args: int | bytes | None) -> int:
    """System call `number`; OSError names it `what`. Integers pass as C longs, bytes as pointers."""
    passed = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *passed)), what)


def prctl(option: int, argument: int = 0, pointer: ctypes.Structure | None = None) -> None:
    """prctl(2), with zeroes for what is not given. Raises OSError."""
    third = ctypes.byref(pointer) if pointer is not None else ctypes.c_ulong(0)
    zero = ctypes.c_ulong(0)
    _checked(int(_libc.prctl(option, ctypes.c_ulong(argument), third, zero, zero)), f"prctl {option}")


def drop_capabilities() -> None:
    """Give up every capability of this thread, so that being root is worth nothing. Raises OSError."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(int(_libc.capset(header, bytes(24))), "capset")

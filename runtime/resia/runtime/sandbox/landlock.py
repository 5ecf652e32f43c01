"""Landlock: a rule set that lets a process read the standard library and touch no other file, port or process.

Source: the kernel's uapi/linux/landlock.h. What a kernel does not know yet is left out by its ABI number; the probe
in `tier.py` finds by trying whether what is left is enough. Landlock does not hide that a path exists.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

from resia.runtime.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
# The number of file rights that each ABI handles: refer came with 2, truncate with 3, device ioctls with 5.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_SINCE_5 = 16
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
NOT_STANDARD = ("site-packages", "dist-packages")


def abi() -> int:
    """The ABI of the running kernel, from 1. Raises OSError where there is no Landlock."""
    return kernel.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION_FLAG)


def attributes(version: int) -> bytes:
    """`struct landlock_ruleset_attr` of ABI `version`, handling all that it can: 8, 16 or 24 bytes."""
    files = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_SINCE_5)) - 1
    packed = struct.pack("=Q", files)
    if version >= 4:
        packed += struct.pack("=Q", _TCP_BIND_AND_CONNECT)
    if version >= 6:
        packed += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    return packed


def _readable(root: str) -> Iterator[tuple[str, int]]:
    yield root, READ_DIR
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in NOT_STANDARD and (entry.is_dir() or entry.is_file()):
                yield entry.path, READ_FILE


def ruleset(roots: Sequence[str]) -> int:
    """A descriptor of rules under which nothing is allowed but to read what is under `roots`, and to list it.

    Packages installed beside the standard library are not part of it. Raises OSError.
    """
    return granted(pair for root in roots for pair in _readable(root))


def granted(paths: Iterable[tuple[str, int]]) -> int:
    """A descriptor of rules under which nothing is allowed but the rights given with each path. Raises OSError."""
    attr = attributes(abi())
    rules = kernel.syscall("landlock_create_ruleset", _CREATE_RULESET, attr, len(attr), 0)
    for path, rights in paths:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            beneath = struct.pack("=Qi", rights, parent)
            kernel.syscall("landlock_add_rule", _ADD_RULE, rules, _PATH_BENEATH, beneath, 0)
        finally:
            os.close(parent)
    return rules


def restrict_self(rules: int) -> None:
    """Put this thread and its descendants under `rules`, for good. Needs no_new_privs. Raises OSError."""
    kernel.syscall("landlock_restrict_self", _RESTRICT_SELF, rules, 0)

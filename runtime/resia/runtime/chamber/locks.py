"""The locks of a kernel's process: files, system calls and limits that torch survives on a processor.

Wider than those of generated harness code: torch makes machine code in memory, reads its libraries late and asks for
its processors. Narrower than a plain process: no file but those of Python, its packages and the system's libraries can
be opened, none written; no socket, no program, no thread or process beyond those that torch had before.
Standard library alone, on the inside.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from typing import NamedTuple

from resia.runtime.sandbox import kernel, landlock, seccomp

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_FILTER, _ALL_THREADS = 1, 1
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system")
DEVICES = ("/dev/null", "/dev/urandom")  # what is written there is lost
OWN = "resia"  # never to be read: the reference is in it
OPEN_FILES = 256
_ALSO: seccomp.Table = {
    "fcntl": (72, 25),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readv": (19, 65),
    "writev": (20, 66),
    "dup": (32, 23),
    "ioctl": (16, 29),  # Python asks of a file whether it is a terminal; Landlock leaves no device to ask
    "poll": (7, None),
    "ppoll": (271, 73),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "membarrier": (324, 283),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "arch_prctl": (158, None),
    "mincore": (27, 232),
    "msync": (26, 227),
    "mbind": (237, 235),
    "get_mempolicy": (239, 236),
    "futex_waitv": (449, 449),
}


class Budget(NamedTuple):
    """What the process may use; `memory_bytes` beyond what it has when the limit is set."""

    cpu_s: int
    memory_bytes: int


def limit_files() -> None:
    """Landlock, before the first thread: reading Python, packages and system libraries. Raises OSError."""
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    rules = landlock.granted(_readable())
    landlock.restrict_self(rules)
    os.close(rules)


def _readable() -> Iterator[tuple[str, int]]:
    for root in sys.path:
        if not os.path.isdir(root):
            continue
        yield root, landlock.READ_DIR
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith((OWN, f"_{OWN}")) and (entry.is_dir() or entry.is_file()):
                    yield entry.path, landlock.READ_FILE
    for path in SYSTEM:
        if os.path.isdir(path):
            yield path, landlock.READ_FILE | landlock.READ_DIR
        elif os.path.exists(path):
            yield path, landlock.READ_FILE
    for path in DEVICES:
        yield path, landlock.READ_FILE | landlock.WRITE_FILE
    yield "/proc", landlock.READ_DIR  # a guest counts its own threads there


def limit_calls() -> None:
    """seccomp on every thread there is, when torch has started its own. Raises OSError."""
    filters = seccomp.program(os.uname().machine, _ALSO, executable=True)
    number = _SECCOMP[os.uname().machine]
    kernel.syscall("seccomp", number, _SET_FILTER, _ALL_THREADS, ctypes.addressof(filters))


def limit_use(budget: Budget) -> None:
    """Resource limits, or lower ones that hold already.

    One more second of CPU lets SIGXCPU, which says why, come before SIGKILL.
    """
    for what, soft, hard in (
        (resource.RLIMIT_CPU, budget.cpu_s, budget.cpu_s + 1),
        (resource.RLIMIT_AS, (memory := _in_use() + budget.memory_bytes), memory),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
    ):
        _, ceiling = resource.getrlimit(what)
        most = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(what, (min(soft, most), most))


def _in_use() -> int:
    """Bytes of address space, where Linux says; elsewhere none is limited by it anyway."""
    try:
        with open("/proc/self/statm", encoding="ascii") as source:
            return int(source.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0

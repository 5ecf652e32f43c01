"""seccomp: a filter that lets a process compute, and answers every other system call with EPERM.

An allow-list, so a call that a later kernel adds is denied before anyone has heard of it. Calls that no honest code
makes kill the process instead, so that they cannot go unnoticed. What is allowed is pure computing, memory that is
never executable, reading (Landlock decides what may be opened), the clock, and its own exit.

Source: uapi linux/filter.h, seccomp.h and audit.h; numbers from asm/unistd_64.h (x86_64) and asm-generic/unistd.h
(aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Mapping
from typing import NamedTuple

from resia.runtime.sandbox import kernel

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _PROTECTION_AT = 0, 4, 32  # offsets in struct seccomp_data; the third is args[2]
_PROT_EXEC = 4
_X32_CALLS = 0x40000000
ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM

# Name: (x86_64, aarch64); None where the architecture has no such call.
Table = Mapping[str, tuple[int | None, int | None]]
_ALLOWED: Table = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # A late import from the standard library needs these.
    "open": (2, None),
    "openat": (257, 56),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
}
_ALLOWED_UNLESS_EXECUTABLE: Table = {"mmap": (9, 222), "mprotect": (10, 226)}
_KILLED: Table = {
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # ways into the kernel, and ways round this filter
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    # keys that outlive the process
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # other views of the file system, and files without a path
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}


class Architecture(NamedTuple):
    """`audit` is its AUDIT_ARCH constant, `column` its place in the tables."""

    audit: int
    column: int


ARCHITECTURES = {"x86_64": Architecture(0xC000003E, 0), "aarch64": Architecture(0xC00000B7, 1)}


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction))]


def _numbers(table: Table, column: int) -> list[int]:
    return [number for row in table.values() if (number := row[column]) is not None]


def instructions(
    architecture: Architecture, also: Table | None = None, executable: bool = False
) -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, operand); jumps count the instructions to skip.

    The calls are compared one by one, and the verdicts follow: deny, allow, kill, and deny-if-executable. `also`:
    calls that are allowed beside the usual; `executable`: memory may be.
    """
    calls = [(number, "allow") for number in _numbers({**_ALLOWED, **(also or {})}, architecture.column)]
    mapped = "allow" if executable else "protection"
    calls += [(number, mapped) for number in _numbers(_ALLOWED_UNLESS_EXECUTABLE, architecture.column)]
    calls += [(number, "kill") for number in _numbers(_KILLED, architecture.column)]
    deny = 4 + len(calls)
    at = {"deny": deny, "allow": deny + 1, "kill": deny + 2, "protection": deny + 3}
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 0, at["kill"] - 2, architecture.audit),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, at["kill"] - 4, 0, _X32_CALLS),
    ]
    program += [(_IF_EQUAL, at[verdict] - place - 1, 0, number) for place, (number, verdict) in enumerate(calls, 4)]
    program += [(_RETURN, 0, 0, DENY), (_RETURN, 0, 0, ALLOW), (_RETURN, 0, 0, KILL)]
    program += [(_LOAD, 0, 0, _PROTECTION_AT), (_IF_ANY_BIT, 0, 1, _PROT_EXEC)]
    program += [(_RETURN, 0, 0, DENY), (_RETURN, 0, 0, ALLOW)]
    return program


def assemble(steps: list[tuple[int, int, int, int]]) -> Program:
    """`steps` as the kernel takes them."""
    listing = (Instruction * len(steps))(*(Instruction(*step) for step in steps))
    return Program(len(steps), listing)


def program(machine: str, also: Table | None = None, executable: bool = False) -> Program:
    """The filter for `machine` as uname names it, see `instructions`. OSError where its calls are not known here."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is None or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}, only for 64-bit {' and '.join(ARCHITECTURES)}")
    return assemble(instructions(architecture, also, executable))


def install(filters: Program) -> None:
    """Put this process and its descendants under the filter, for good. Needs no_new_privs. Raises OSError."""
    kernel.prctl(_PR_SET_SECCOMP, _MODE_FILTER, filters)

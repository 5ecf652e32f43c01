"""Turns every lock, in order: capabilities, no_new_privs, Landlock, then in each guest limits, Landlock, seccomp.

What can be built once is built in the fork server, so that a guest only applies it. A lock that does not turn raises
OSError, and then nothing generated runs. Knows nothing of what will run.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import NamedTuple

from resia.runtime.sandbox import kernel, landlock, seccomp
from resia.runtime.sandbox.wire import Setup


class Locks(NamedTuple):
    """Landlock's rules and seccomp's filter, ready to apply."""

    rules: int
    filters: seccomp.Program


def confine_server(setup: Setup) -> Locks | None:
    """Lock the fork server itself down to reading the standard library, and prepare its guests' locks.

    None without confinement. Everything a guest may import that is not plain Python must be loaded by now.
    """
    if not setup.confined:
        return None
    locks = Locks(
        landlock.ruleset([root for root in sys.path if os.path.isdir(root)]), seccomp.program(os.uname().machine)
    )
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict_self(locks.rules)
    return locks


def confine_guest(setup: Setup, locks: Locks | None, server: int) -> None:
    """Lock this forked process, whose parent is process `server`, for the one run that it is for."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            raise OSError("the fork server ended first")
    limit(setup)
    if locks is not None:
        # A second layer: signals are scoped to it, so a guest cannot reach the fork server either.
        landlock.restrict_self(locks.rules)
        os.close(locks.rules)
        seccomp.install(locks.filters)


def limit(setup: Setup) -> None:
    """The resource limits, or lower ones that hold already.

    One more second of CPU lets SIGXCPU, which says why, come before SIGKILL.
    """
    for what, soft, hard in (
        (resource.RLIMIT_CPU, setup.cpu_s, setup.cpu_s + 1),
        (resource.RLIMIT_AS, setup.memory_bytes, setup.memory_bytes),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_NOFILE, setup.open_files, setup.open_files),
    ):
        _, ceiling = resource.getrlimit(what)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(what, (soft, hard))

"""How much a sandbox keeps out on this machine, found by trying and not by reading versions.

Knows nothing of how anything is kept out: it runs a source that tries to get out, and asks how far it came.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence

import msgspec

from resia.agents.ports import Json, Ran
from resia.events.errors import BoundaryError


class Tier(msgspec.Struct, frozen=True):
    """`name` is recorded in every evaluation; `protects` and `exposes` are what a person reads in `resia doctor`."""

    name: str
    protects: tuple[str, ...]
    exposes: tuple[str, ...]


CONFINED = Tier(
    name="landlock+seccomp+rlimits",
    protects=(
        "files: only the standard library can be read, nothing can be written",
        "network: no socket of any kind",
        "processes: no fork, thread, exec, signal or ptrace; no view of another's memory",
        "secrets: no environment, no inherited descriptor, no memory of the worker",
        "resources: CPU, wall time, memory, descriptors, size of every message",
    ),
    exposes=(
        "that a path exists, its size and its times",
        "the kernel's own faults, through the few calls that remain",
    ),
)
UNSAFE = Tier(
    name="unsafe-local: rlimits only",
    protects=(
        "environment: the child starts without it",
        "resources of one process: CPU, wall time, memory, descriptors, size of every message",
    ),
    exposes=("all that this user may read, reach, run or signal", "as root or on macOS, the number of processes too"),
)
NONE = Tier(name="none", protects=(), exposes=("generated code is refused",))

_ATTEMPTS = """
import os, socket

def forked():
    if os.fork() == 0:
        os._exit(0)

def attempts(secret, address):
    tries = {
        "read a file": lambda: open(secret).close(),
        "write a file": lambda: open(secret + ".new", "w").close(),
        "open a socket": lambda: socket.socket().connect(tuple(address)),
        "fork": forked,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
    }
    reached = []
    for name, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError as error:
            reached.append(name + " (" + str(error) + ")")
        else:
            reached.append(name)
    return reached
"""


def escapes(run: Callable[[str, str, Sequence[Json]], Ran]) -> list[str]:
    """What a source could do in the sandbox `run` that it must not; empty when it is confined.

    The attempts are on a file and a listening port of this process, so each would succeed if it were not stopped.
    """
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        secret = os.path.join(folder, "secret")
        with open(secret, "w") as file:
            file.write("secret")
        try:
            return [str(name) for name in run(_ATTEMPTS, "attempts", [secret, list(listener.getsockname())]).value]
        except BoundaryError as error:
            return [f"end without an answer ({error})"]

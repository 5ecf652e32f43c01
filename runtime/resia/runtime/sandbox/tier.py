"""How much a sandbox keeps out on this machine, found by trying and not by reading versions.

Knows nothing of how anything is kept out: it runs a source that tries to get out, and asks how far it came.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence

import msgspec

from resia.agents.ports import Json, Ran
from resia.events.errors import BoundaryError
from resia.runtime.sandbox.wire import Bait


class Tier(msgspec.Struct, frozen=True):
    """`name` is recorded in every evaluation; `protects` and `exposes` are what a person reads in `resia doctor`.

    `confined` says whether a guest locks itself, `enclosed` whether bubblewrap holds the fork server.
    """

    name: str
    protects: tuple[str, ...]
    exposes: tuple[str, ...]
    confined: bool = True
    enclosed: bool = False


ENCLOSED = Tier(
    name="bwrap+landlock+seccomp+rlimits",
    protects=(
        "files: only the standard library can be read, nothing can be written; no other file is there",
        "network: no socket of any kind, and none would lead anywhere",
        "processes: no fork, thread, exec, signal or ptrace; no other process but the fork server can be seen",
        "secrets: no environment, no inherited descriptor, no memory of the worker",
        "resources: CPU, wall time, memory, descriptors, size of every message",
    ),
    exposes=("kernel: its own faults, through the few calls that remain",),
    enclosed=True,
)
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
        "files: that a path exists, its size and its times",
        "kernel: its own faults, through the few calls that remain",
    ),
)
UNSAFE = Tier(
    name="unsafe-local: rlimits only",
    protects=(
        "environment: the child starts without it",
        "resources: CPU, wall time, memory, descriptors, size of every message",
    ),
    exposes=(
        "files, network, processes: all that this user may read, reach, run or signal",
        "number of processes: as root or on macOS, any",
    ),
    confined=False,
)
NONE = Tier(name="none", protects=(), exposes=(), confined=False)
# The strongest first; a machine gets the first that holds.
TIERS = (ENCLOSED, CONFINED)

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
        except (PermissionError, FileNotFoundError):
            continue
        except OSError as error:
            reached.append(name + " (" + str(error) + ")")
        else:
            reached.append(name)
    return reached
"""


@contextlib.contextmanager
def laid() -> Iterator[Bait]:
    """A file and a listening port of this process, which code that is not kept from them can get hold of."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        secret = os.path.join(folder, "secret")
        with open(secret, "w") as file:
            file.write("secret")
        host, port = listener.getsockname()
        yield Bait(secret, host, port)


def escapes(bait: Bait, run: Callable[[str, str, Sequence[Json]], Ran]) -> list[str]:
    """What a source could do in the sandbox `run` that it must not; empty when it is confined.

    Each attempt is on what is there, so it would succeed if it were not stopped.
    """
    try:
        return [str(name) for name in run(_ATTEMPTS, "attempts", [bait.secret, [bait.host, bait.port]]).value]
    except BoundaryError as error:
        return [f"end without an answer ({error})"]

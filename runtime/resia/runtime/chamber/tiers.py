"""How a guest can be locked in on this machine, the stronger first, and the command that starts it so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .locks import SYSTEM


class Tier(NamedTuple):
    """`name` is recorded with every verdict; `command` goes before the interpreter's; `confined`: the inside locks
    itself as well."""

    name: str
    command: tuple[str, ...]
    confined: bool


UNSAFE = Tier("unsafe-local: rlimits only", (), False)
# Folders that compilers and a GPU's driver look for programs in, and what some distributions lead there by.
PROGRAMS = ("/bin", "/sbin", "/etc/alternatives")
# What a guest runs before its own function is defined; it raises when the tier does not hold. OPEN names what a GPU's
# driver needs, and what is therefore not tried.
OPEN_ON_GPU = 'OPEN = ("start a thread", "fork", "run a program")\n'
ATTEMPTS = """
import os, socket, threading

def tried(attempt):
    try:
        attempt()
    except (PermissionError, RuntimeError, FileNotFoundError):
        return False
    except OSError as error:
        return error.errno not in (101, 111)  # no network; one of its own, where nobody listens
    return True

reached = [
    name
    for name, attempt in {
        "read a file": lambda: open(SECRET).close(),
        "write a file": lambda: open(SECRET + ".new", "w").close(),
        "open a socket": lambda: socket.socket().connect(ADDRESS),
        "start a thread": lambda: threading.Thread(target=int).start(),
        "fork": lambda: os.fork() or os._exit(0),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
    }.items()
    if name not in globals().get("OPEN", ()) and tried(attempt)
]
assert not reached, ", ".join(reached)
"""


def candidates(device: str, folders: tuple[str, ...]) -> Iterator[Tier]:
    """Tiers to try for `device`, whose interpreter reads the inside's own files in `folders`.

    On a GPU the driver needs its devices, threads and programs, so bubblewrap alone can hold there.
    """
    bubblewrap = shutil.which("bwrap")
    if bubblewrap:
        name = "bubblewrap+landlock+seccomp+rlimits" if device == "cpu" else "bubblewrap"
        yield Tier(name, (bubblewrap, *_wrapped(device, folders)), confined=True)
    if device == "cpu":
        yield Tier("landlock+seccomp+rlimits", (), confined=True)


def _wrapped(device: str, folders: tuple[str, ...]) -> Iterator[str]:
    """No network, no other process, no home; Python, packages and libraries read-only, resia but for its inside not."""
    yield from ("--unshare-all", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev")
    yield from ("--tmpfs", "/tmp", "--cap-drop", "ALL")
    for path in dict.fromkeys((*SYSTEM, sys.base_prefix, sys.prefix, *_packages())):
        if not path.startswith("/proc"):
            yield from _bound(path)
    for package in _packages():
        if Path(package, "resia").is_dir():
            yield from ("--tmpfs", str(Path(package, "resia")))
    for folder in folders:
        yield from ("--ro-bind", folder, folder)
    if device != "cpu":
        for path in PROGRAMS:
            yield from _bound(path)
        for node in sorted(Path("/dev").glob("nvidia*")):
            yield from ("--dev-bind", str(node), str(node))
        yield from ("--ro-bind-try", "/sys", "/sys", "--setenv", "HOME", "/tmp")


def _bound(path: str) -> tuple[str, ...]:
    """The path as it is outside, read-only; a link stays one."""
    return ("--symlink", os.readlink(path), path) if Path(path).is_symlink() else ("--ro-bind-try", path, path)


def _packages() -> list[str]:
    """Folders of installed packages, those that a .pth file names among them."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and Path(path).is_dir()]

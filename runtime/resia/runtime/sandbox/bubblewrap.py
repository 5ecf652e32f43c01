"""bubblewrap: the fork server in namespaces of its own, where the machine is not there rather than forbidden.

Inside there is the interpreter, the shared libraries that it maps, the standard library and this package's inside, all
read-only; no other file, no /proc and no /dev; no network device, no process but its own, and no capability. Which
libraries those are is found by looking at an interpreter that has loaded all that a guest may use. A fresh /proc would
say nothing that a guest may read, and many containers forbid mounting one.

Collaborators: `server.py`, which starts what `command` gives. Whether it holds is for `tier.py` and `child.py` to try.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from resia.events.errors import BoundaryError
from resia.runtime.sandbox.landlock import NOT_STANDARD

PROGRAM = "bwrap"
ABSENT = "there is no program bwrap"
# Where the inside's files and the working folder are, in there.
INSIDE, EMPTY = "/inside", "/tmp"
_LOADER_CACHE = "/etc/ld.so.cache"
# Where the loader is looked for by name, which is often a link to it.
_LOADER_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PROBE_S = 60.0
_ISOLATED = (
    "--unshare-user",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--uid",
    "65534",
    "--gid",
    "65534",
    "--cap-drop",
    "ALL",
    "--die-with-parent",
    "--new-session",
    # The fork server is the first process in there, so when it ends the kernel ends every guest.
    "--as-pid-1",
    "--hostname",
    "sandbox",
    "--clearenv",
)
_LOOK = """
import json
from resia.runtime.sandbox import child
child.load()
with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[5].rstrip("\\n") for line in maps if "/" in line}
print(json.dumps([sys.path, sorted(mapped)]))
"""


class View(NamedTuple):
    """What an interpreter needs of a machine: `folders` whole, but for packages installed in them, and `files`."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def view(interpreter: tuple[str, ...], prelude: str, here: str) -> View:
    """What the inside maps and searches, by starting it once without a sandbox. Raises BoundaryError.

    `interpreter` is its path and flags, `prelude` the program that makes the inside importable from folder `here`.
    """
    try:
        done = subprocess.run(
            [*interpreter, "-c", prelude + _LOOK, here], env={}, capture_output=True, timeout=_PROBE_S, check=True
        )
        path, mapped = msgspec.json.decode(done.stdout, type=tuple[list[str], list[str]])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise BoundaryError(f"the sandbox's interpreter cannot be looked at: {error}") from error
    folders = tuple(folder for folder in path if os.path.isdir(folder))
    libraries = [file for file in mapped if os.path.isfile(file)]
    outside = [file for file in libraries if not any(_under(file, folder) for folder in folders)]
    return View(folders, tuple(sorted({interpreter[0], *outside, *_names(outside)})))


def _under(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _names(libraries: Sequence[str]) -> Iterator[str]:
    """Links beside `libraries`, or where the loader is looked for, that lead to one of them."""
    wanted = set(libraries)
    folders = {*map(os.path.dirname, libraries), *filter(os.path.isdir, _LOADER_FOLDERS)}
    for folder in folders:
        if os.path.islink(folder):
            continue
        with os.scandir(folder) as entries:
            yield from (entry.path for entry in entries if entry.is_symlink() and os.path.realpath(entry) in wanted)


def command(interpreter: tuple[str, ...], prelude: str, here: str, environment: Mapping[str, str]) -> list[str]:
    """bwrap with its options, to be followed by `interpreter` and a program; for the arguments see `view`.

    Raises BoundaryError where there is no bwrap.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise BoundaryError(ABSENT)
    needs = view(interpreter, prelude, here)
    options = [program, *_ISOLATED]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    for folder in filter(os.path.islink, _LOADER_FOLDERS):
        options += ["--symlink", os.readlink(folder), folder]
    for path in sorted({*needs.folders, *needs.files, *filter(os.path.exists, [_LOADER_CACHE])}):
        # What lies in one of the folders comes with it.
        if not any(path != folder and _under(path, folder) for folder in needs.folders):
            options += ["--ro-bind", path, path]
    for folder in needs.folders:
        for packages in (os.path.join(folder, name) for name in NOT_STANDARD):
            if os.path.isdir(packages):
                options += ["--tmpfs", packages, "--remount-ro", packages]
    return [*options, "--ro-bind", here, INSIDE, "--dir", EMPTY, "--chdir", EMPTY, "--remount-ro", "/", "--"]

"""Files that a person asks for by name: whole and on disk or not there, and never in place of another."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resia.events.errors import UsageError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write beside `path`; what was written there gets the name once it is whole. UsageError: taken."""
    check_new(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as cause:
        raise UsageError(f"{path} cannot be written ({cause.strerror}): name another file with --out") from None
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        give_name(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists already: name another file with --out")


def give_name(partial: Path, path: Path) -> None:
    """Sync the file `partial` and call it `path` too; UsageError where that name was given meanwhile."""
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.chmod(0o644)
    try:
        os.link(partial, path)  # and not a rename, which would take another's place
    except FileExistsError:
        check_new(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

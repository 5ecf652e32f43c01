"""The file that `resia init` writes: the starter problem of `resia.domains`, byte for byte."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from resia.events.errors import UsageError


def write_problem(file: Path) -> Path:
    """Write the starter to a new `file`, and give its path. UsageError where that name is taken or not to be had."""
    source = files("resia.domains").joinpath("starter.py").read_bytes()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as out:
            out.write(source)
    except FileExistsError:
        raise UsageError(f"{file} exists already: name another file") from None
    except OSError as cause:
        raise UsageError(f"{file} cannot be written ({cause.strerror}): name another file or folder") from None
    return file

"""Problems in files: what `resia run --domain FILE.py` loads, from the very bytes that its digest covers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from resia.events.errors import ResiaError, UsageError
from resia.events.ids import sha256

from .simple import Problem


def is_file(name: str) -> bool:
    """Whether a domain's name is that of a file."""
    return name.endswith(".py")


def recorded_name(name: str) -> str:
    """`name` as a log keeps it: a file by its whole path, because other processes load it too."""
    return str(Path(name).resolve()) if is_file(name) else name


def problem_in(name: str) -> Problem:
    """The problem in the file `name`. Raises UsageError naming it where it is not there or is no Python."""
    path = Path(name)
    try:
        source = path.read_bytes()
    except OSError as cause:
        raise UsageError(
            f"problem file '{name}' cannot be read ({cause.strerror}): check the path, or write one with resia init"
        ) from None
    # Run from the bytes read, and not imported: the digest is of these, and a stale cache of Python's has no say.
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    registered = f"resia_problem_{sha256(source)[:16]}"
    sys.modules[registered] = module  # dataclasses and msgspec look types up by module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except ResiaError:
        raise
    except (Exception, SystemExit) as cause:
        raise UsageError(f"problem file '{name}' cannot be loaded: {_why(cause)}") from cause
    return Problem(module, path.name, source)


def problem_of(module: ModuleType) -> Problem:
    """The problem of an installed module, which an entry point names without an attribute."""
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else b""
    return Problem(module, module.__name__, source)


def _why(cause: BaseException) -> str:
    """What went wrong and, where Python says so, on which line of the file."""
    if isinstance(cause, SyntaxError):
        return f"{cause.msg} (line {cause.lineno})"
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(cause).__name__}: {cause}" + (f" (line {trace.tb_lineno})" if trace is not None else "")

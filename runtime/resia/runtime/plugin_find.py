"""Finding workers of users' own: in installed packages by entry point, or in a file.

The group `resia.workers` names them: `alerts = "my_package.alerts:regressions"`. Nothing is imported before it is
asked for.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from resia.events.errors import ResiaError, UnknownName, UsageError

from .plugin import Declaration, declaration_of

GROUP = "resia.workers"


class Found(NamedTuple):
    """A worker and where it is from: a distribution with its version, or a file."""

    declared: Declaration
    source: str


class Listed(msgspec.Struct, frozen=True):
    """A line of `resia worker list`; `error` is why a worker cannot be started, empty when it can."""

    name: str
    role: str
    consumes: tuple[str, ...]
    emits: tuple[str, ...]
    source: str
    error: str = ""


def is_file(target: str) -> bool:
    """Whether `target` names a worker in a file, as FILE.py or FILE.py:function."""
    return target.partition(":")[0].endswith(".py")


def find(target: str, built_in: Mapping[str, object] | tuple[str, ...] = ()) -> Found:
    """The worker called `target` in an installed package, or in FILE.py; UsageError says why there is none.

    `built_in` names the roles that are offered beside the workers when the name is unknown.
    """
    if is_file(target):
        return _in_file(target)
    points = _points()
    if target not in points:
        raise UnknownName("role or worker", target, [*built_in, *points])
    return _loaded(target, points[target])


def listed() -> list[Listed]:
    """Every worker of the installed packages, by name, those that cannot be loaded among them."""
    lines = []
    for name, points in sorted(_points().items()):
        source = " and ".join(sorted({_source(point) for point in points}))
        try:
            declared = _loaded(name, points).declared
        except ResiaError as cause:
            lines.append(Listed(name, "", (), (), source, str(cause)))
        else:
            lines.append(Listed(name, declared.role, declared.consumes, declared.writes, source))
    return lines


def _points() -> dict[str, list[EntryPoint]]:
    """Entry points by name, each place once: one package can be on the path twice."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: list(points.values()) for name, points in found.items()}


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _loaded(name: str, points: list[EntryPoint]) -> Found:
    if len(points) > 1:
        raise UsageError(
            f"{' and '.join(sorted(_source(point) for point in points))} both have a worker '{name}': remove one"
        )
    (point,) = points
    try:
        declared = declaration_of(point.load())
    except ResiaError:
        raise
    except (Exception, SystemExit) as cause:
        raise UsageError(f"worker '{name}' of {_source(point)} cannot be loaded: {_why(cause)}") from cause
    if declared is None:
        raise UsageError(f"{point.value} of {_source(point)} is no worker: declare the function with @worker(...)")
    return Found(declared, _source(point))


def _in_file(target: str) -> Found:
    file, _, function = target.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {path}: check the name, or give a worker's name (resia worker list)")
    here = _declared(_imported(path))
    if not here:
        raise UsageError(f"{path} declares no worker: put @worker(...) on a function of it")
    if function:
        if function not in here:
            raise UnknownName(f"worker in {path}:", function, here)
        return Found(here[function], path.name)
    if len(here) > 1:
        raise UsageError(f"{path} declares {len(here)} workers: name one, such as {path}:{next(iter(here))}")
    return Found(next(iter(here.values())), path.name)


def _declared(module: ModuleType) -> dict[str, Declaration]:
    """Workers that a module declares itself, by function name."""
    found: dict[str, Declaration] = {}
    for name, value in vars(module).items():
        declared = declaration_of(value)
        if declared is not None and getattr(value, "__module__", None) == module.__name__:
            found[name] = declared
    return found


def _imported(path: Path) -> ModuleType:
    """The file as a module, with its folder importable as under `python FILE`."""
    name = f"resia_worker_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # msgspec looks types up by module
    try:
        spec.loader.exec_module(module)
    except ResiaError:
        raise
    except (Exception, SystemExit) as cause:
        raise UsageError(f"{path} cannot be loaded: {_why(cause)}") from cause
    return module


def _why(cause: BaseException) -> str:
    """What went wrong and, where Python says so, on which line."""
    if isinstance(cause, SyntaxError):
        return f"{cause.msg} (line {cause.lineno})"
    trace: Any = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(cause).__name__}: {cause}" + (f" (line {trace.tb_lineno})" if trace is not None else "")

"""The command that looks at the machine before a run does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from .cli_options import DONE, FAILED, STORE, JsonOption, StoreOption, print_shown

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def register(app: typer.Typer) -> None:
    """Add this group's command to the command line."""
    app.command()(doctor)


def doctor(store: StoreOption = STORE, json: JsonOption = False) -> int:
    """What this machine can do for a run: its sandbox, found by trying, and what a run needs beside it.

    Exits with 1 where no run can be made, such as one whose generated code would be refused.
    """
    import msgspec
    from rich.table import Table
    from rich.text import Text

    from .doctor import diagnose
    from .views import Shown

    found = diagnose(store)
    table = Table.grid(padding=(0, 2))
    for check in found.checks:
        table.add_row(Text(check.status, STYLES[check.status]), check.name, Text(check.detail))
    parts: list[RenderableType] = [table]
    for head, lines in (("the sandbox keeps in", found.protects), ("and leaves open", found.exposes)):
        if lines:
            parts += [Text(f"\n{head}", "bold"), _points(lines)]
    code = DONE if found.able else FAILED
    return print_shown(Shown((msgspec.to_builtins(found),), tuple(parts), code), json)


def _points(lines: Iterable[str]) -> RenderableType:
    """A line each; what comes before its colon, what it is about, in a column of its own."""
    from rich.table import Table

    points = Table.grid(padding=(0, 2))
    for line in lines:
        about, _, what = line.partition(": ")
        points.add_row(f"  {about}", what)
    return points

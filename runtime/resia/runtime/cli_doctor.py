"""The command that looks at the machine, and at the log it is pointed at, before a run does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_options import DONE, FAILED, STORE, CacheOption, JsonOption, NatsOption, StoreOption, print_shown, run_async

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .doctor import Check

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def register(app: typer.Typer) -> None:
    """Add this group's command to the command line."""
    app.command()(doctor)


def doctor(
    store: StoreOption = STORE,
    nats: NatsOption = None,
    monitor: Annotated[
        str | None, typer.Option(help="Monitoring port of the external server, http://HOST:8222.")
    ] = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """What this machine can do for a run, and whether the log's server keeps what it acknowledges. Nothing is written.

    Each finding is ok, a warning or a fault, with what to do. Exits with 1 while a fault stands.
    """
    import msgspec

    from .doctor import diagnose, sound
    from .views import Shown

    found = diagnose(store, cache)
    if nats is not None or store.is_dir():
        from .doctor_log import look
        from .store import Store

        found += tuple(run_async(look(Store(store, nats), monitor)))
    lines = tuple({"name": check.name, **msgspec.to_builtins(check)} for check in found)
    return print_shown(Shown(lines, tuple(_table(found)), DONE if sound(found) else FAILED), json)


def _table(found: Iterable[Check]) -> Iterable[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for check in found:
        table.add_row(Text(check.status, STYLES[check.status]), check.name, Text(check.detail))
        if check.fix:
            table.add_row("", "", Text(f"fix: {check.fix}", "bold"))
    yield table
    for check in found:
        for head, lines in (("the sandbox keeps in", check.protects), ("and leaves open", check.exposes)):
            if lines:
                yield Text(f"\n{head}", "bold")
                yield _points(lines)


def _points(lines: Iterable[str]) -> RenderableType:
    """A line each; what comes before its colon, what it is about, in a column of its own."""
    from rich.table import Table

    points = Table.grid(padding=(0, 2))
    for line in lines:
        about, _, what = line.partition(": ")
        points.add_row(f"  {about}", what)
    return points

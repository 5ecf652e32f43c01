"""Commands of logs as files: export, import, archives and what may be removed."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    del app

"""Commands of forks: another future from a decision of the past."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    del app

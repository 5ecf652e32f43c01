"""The command that scores a file of answers, so that anyone can check our scorers against the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import CacheOption, JsonOption, UnsafeOption, print_shown


def register(app: typer.Typer) -> None:
    """Add this group's command to the command line."""
    app.command()(score)


def score(
    domain: Annotated[str, typer.Argument(help="The problem that the file answers.")],
    predictions: Annotated[Path, typer.Option(help="The file: predictions, a matrix or a source, as the domain says.")],
    protocol: Annotated[str | None, typer.Option(help="How it is scored; default: the domain's first.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One option of the domain, as name=value.")] = None,
    cache: CacheOption = None,
    unsafe_local: UnsafeOption = False,
    json: JsonOption = False,
) -> int:
    """Score a file of answers without a run: scores, coverage, and what is wrong with the answers that are none."""
    from .scoring import score_file, shown

    found = score_file(domain, protocol, predictions, set_ or [], cache, unsafe_local)
    return print_shown(shown(domain, predictions, found), json)

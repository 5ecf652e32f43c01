"""Commands of a problem of one's own: write one, and check any before a run is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import CacheOption, JsonOption, emit, print_shown

task_app = typer.Typer(help="Problems: what can be improved on.", no_args_is_help=True)
PROBLEM = "problem.py"
UnsafeOption = Annotated[
    bool, typer.Option("--unsafe-local", help="Run answers that are programs without a sandbox if there is none.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(init)
    app.add_typer(task_app, name="task")


def init(
    path: Annotated[Path, typer.Argument(help="A folder, or a new file ending in .py.")] = Path(),
    json: JsonOption = False,
) -> int:
    """Write a problem of your own to start from: one file, three functions."""
    from .starting import write_problem

    file = write_problem(path / PROBLEM if path.suffix != ".py" else path)
    if json:
        emit({"file": str(file)})
    else:
        typer.echo(f"{file}: change its functions, then resia task check {file} and resia run --domain {file}")
    return 0


@task_app.command("items")
def write_items(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A domain whose items are more than prompts.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="One option of the domain, as key=value.")] = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Write what an answer to each item may be made of, for another system to answer and resia score to score."""
    from .scoring import write_given

    return print_shown(write_given(name, out, set_ or [], cache), json)


@task_app.command("check")
def check_task(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A domain, or a problem's file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="One option of the domain, as key=value.")] = None,
    items: Annotated[int, typer.Option(min=1, help="Items of each split to try answers on.")] = 2,
    answers: Annotated[int, typer.Option(min=0, help="Drawn answers beside those that the task names.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Draws them.")] = 0,
    unsafe_local: UnsafeOption = False,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Load a domain and run its admission tests: what passed, what failed and why. Exit code 1: it is refused."""
    from resia.domains.trials import Plan

    from .admitting import check

    return print_shown(check(name, set_ or [], cache, Plan(items, answers, seed), unsafe_local), json)

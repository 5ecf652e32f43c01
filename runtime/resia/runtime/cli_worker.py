"""Commands of worker processes: roles of resia and workers of a user's own, and logins for programs elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .cli_options import (
    DONE,
    STORE,
    CacheOption,
    JsonOption,
    MetricsOption,
    NatsOption,
    StoreOption,
    emit,
    run_async,
    show,
)

app = typer.Typer(help="Worker processes: start them, list them, grant logins.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    parent.add_typer(app, name="worker")


@app.command()
def start(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A role, a worker of an installed package, or FILE.py[:function].")
    ],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    run: Annotated[str | None, typer.Option("--run", help="Serve this run only.")] = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish what is in hand after SIGTERM.")] = 25.0,
    stalled: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds without progress, then it ends [default: 1800 for a role, else any].",
            show_default=False,
        ),
    ] = None,
    max_runs: Annotated[int, typer.Option(min=1, help="Runs served at once; more wait for one to end.")] = 500,
    metrics: MetricsOption = None,
) -> int:
    """Add one more process to a role or a worker, on the runs that are active on a server."""
    from .leaving import Stay
    from .ranks import follow_rank_0, place_here
    from .roles import ROLE_NAMES
    from .store import Store

    if (place := place_here(name)).rank > 0:
        follow_rank_0(place, cache)
        return DONE
    where, stay = Store(store, nats), Stay(grace, stalled, max_runs)
    if name in ROLE_NAMES:
        from .attach import attach

        return int(run_async(attach(name, where, cache, run, unsafe_local, stay, metrics)))
    from .plugin_find import find
    from .plugin_serving import serve_found

    return int(run_async(serve_found(find(name, ROLE_NAMES), where, run, stay, metrics)))


@app.command(name="list")
def list_(json: JsonOption = False) -> int:
    """Roles of resia and the workers of installed packages: what each consumes and emits, and where it is from."""
    from .workers import listed

    lines = listed()
    if json:
        for line in lines:
            emit(line)
        return DONE
    from rich.console import Console

    Console().print(_table(lines), markup=False, highlight=False)
    return DONE


@app.command()
def held(
    run: Annotated[str | None, typer.Argument(help="The run; without it all active runs.")] = None,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Who has what in hand: what waits for each role, and each worker that has worked on one event for seconds."""
    from .held import held_view
    from .store import Store

    return show(held_view(Store(store, nats), run), json)


@app.command()
def grant(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A worker as for start; or leave it out and say --role.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="Role of a program in any language.")] = None,
    emits: Annotated[list[str] | None, typer.Option(help="A wire type that it may write; once for each.")] = None,
    as_: Annotated[str, typer.Option("--as", help="Name of the program, one a role.")] = "program",
    renew: Annotated[bool, typer.Option("--renew", help="A new password; the old one ends at once.")] = False,
    store: StoreOption = STORE,
    json: JsonOption = False,
) -> int:
    """Add a login to the server that runs over the store: it reads, and writes the declared events and no other.

    The login stays valid as long as the store is there. Granting again changes what it may write.
    """
    from .workers import granted

    found = granted(store, name, role, emits or [], as_, renew)
    if json:
        emit(found)
        return DONE
    for key, value in found.items():
        typer.echo(f"{key:9} {' '.join(value) if isinstance(value, list) else value}")
    return DONE


def _table(lines: list[Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "role", "consumes", "emits", "from"):
        table.add_column(title, overflow="fold")
    for line in lines:
        table.add_row(line.name, line.role, "\n".join(line.consumes) or line.error, "\n".join(line.emits), line.source)
    return table

"""Commands of a log on several servers: its secrets, three nodes on this machine, and how the nodes stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_options import DONE, FAILED, JsonOption, NatsOption, emit, run_async, say

if TYPE_CHECKING:
    from .cluster.nodes import Nodes

app = typer.Typer(help="A log on three servers: secrets, nodes, who leads.", no_args_is_help=True)
FolderOption = Annotated[Path, typer.Option("--folder", help="Secrets of the cluster; never in version control.")]
FOLDER = Path(".cluster")


def register(parent: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    parent.add_typer(app, name="cluster")


@app.command()
def init(
    folder: FolderOption = FOLDER,
    renew: Annotated[bool, typer.Option(help="New certificates; passwords stay.")] = False,
    blobs: Annotated[
        str | None,
        typer.Option(help="Where the blobs are: an fsspec URL, or 'jetstream'; default: the store's folder."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Make certificates, passwords and a login file a role, for compose.yaml and for `resia cluster up`."""
    from .cluster.credentials import make
    from .logins import check_blobs

    check_blobs(blobs or "")
    made = make(folder, renew=renew, blobs=blobs)
    if json:
        emit({"folder": str(folder), "made": made})
    else:
        say(f"secrets are in {folder}" if made else f"secrets are in {folder} already; --renew for new certificates")
    return DONE


@app.command()
def up(folder: FolderOption = FOLDER, json: JsonOption = False) -> int:
    """Run three nodes on this machine until Ctrl-C; a node that dies is started again. Makes secrets where none are."""
    from .cluster.credentials import make
    from .cluster.nodes import Nodes

    make(folder)
    nodes = Nodes(folder)
    try:
        access = nodes.start()
        logins = folder / "logins"
        if json:
            emit({"url": access.url, "logins": str(logins)})
        else:
            say(f"three nodes at {access.url}; login files are in {logins}, such as --nats {logins / 'all.json'}")
        run_async(_kept(nodes))
    finally:
        nodes.stop()
    return DONE


async def _kept(nodes: Nodes) -> None:
    import asyncio

    while True:
        for name in nodes.dead():
            say(f"{name} died and is started again")
            nodes.launch(name)
        await asyncio.sleep(0.5)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="A run; without it the registry of runs.")] = None,
    answers: Annotated[bool, typer.Option("--answers", help="Exit code 0 if the log answers at all.")] = False,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Who holds a log, who leads it, and who is behind or down. Exit code 1 unless every copy is whole.

    With --answers it is the health check of a worker's container: its login is valid, and the log answers.
    """
    from .cluster.looking import looked

    members = run_async(looked(nats, run))
    if json:
        for member in members:
            emit(member._asdict())
    else:
        if not members:
            say("no run was begun here yet, so no node holds a log")
        for member in members:
            about = "leads" if member.leads else "whole" if member.current else "down or behind"
            typer.echo(f"{member.name:10} {about}")
    return DONE if answers or all(member.current for member in members) else FAILED

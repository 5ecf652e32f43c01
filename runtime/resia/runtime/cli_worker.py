"""Commands of worker processes: more processes for a role."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_options import STORE, CacheOption, NatsOption, StoreOption, run_async


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(worker)


def worker(
    role: Annotated[str, typer.Argument(help="meta, task, feedback or trainer.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    run: Annotated[str | None, typer.Option("--run", help="Serve this run only.")] = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
) -> int:
    """Add one more process to a role of the runs that are active on a server."""
    from .attach import attach
    from .store import Store

    return int(run_async(attach(role, Store(store, nats), cache, run, unsafe_local)))

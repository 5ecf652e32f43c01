"""The replay command: a run's state, decisions or computations again, and the harness and adapter of any moment."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    STORE,
    CacheOption,
    Interrupted,
    JsonOption,
    NatsOption,
    StoreOption,
    print_shown,
    run_async,
)


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(replay)


def replay(
    run: Annotated[str, typer.Argument(help="The run, or RUN@K for its K-th decision.")],
    depth: Annotated[
        str | None, typer.Option(help="state (as without), decisions or compute: each checks more, and takes longer.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="The same as --depth decisions.")] = False,
    at: Annotated[int | None, typer.Option("--at", help="Replay up to this event number only.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the champion's harness and adapter of that moment to this folder.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="With --depth compute: training or sampling alone.")] = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Rebuild a run from its log and check it: that nothing was changed (state), that every rule decides as it did
    (decisions), that every training and every sample comes out bit for bit (compute). Exit code 1 when it does not."""
    from .moment import require_free
    from .reading import load
    from .replaying import asked, shown
    from .replaying import replay as replay_log
    from .store import Store

    what = asked(run, at, depth, verify, only, out)
    if out is not None:
        require_free(out)
    there = Store(store, nats)
    log = run_async(load(there, what.run))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as workers have it: spinning threads starve the others
    with stoppable(), warnings.catch_warnings(), _progress(what.depth == "compute") as heard:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries to their own authors
        found = replay_log(log, there, what, cache, unsafe_local, heard)
    return print_shown(shown(log, there, what, found), json)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM as `run_async` has them, for work that an event loop could not be interrupted in."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(visible: bool) -> Iterator[Callable[[str, int, int], None]]:
    """What is performed again, on standard error: gone when it is done, and silent where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not visible or not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)

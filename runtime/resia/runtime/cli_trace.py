"""The command that makes OpenTelemetry spans of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import DONE, STORE, JsonOption, NatsOption, StoreOption, emit, run_async, say
from .newfile import new_file


def register(app: typer.Typer) -> None:
    """Add this group's command to the command line."""
    app.command()(trace)


def trace(
    run: Annotated[str, typer.Argument(help="The run.")],
    out: Annotated[Path, typer.Option("--out", help="A new file: OTLP JSON, a request a line.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Make the spans of a run of its log alone: a trace an iteration, a span an event, for any collector."""
    from resia.replay.spans import spans

    from .otlp_file import lines
    from .reading import load
    from .store import Store

    log = run_async(load(Store(store, nats), run))
    found = list(spans(run, log.facts))
    with new_file(out) as partial, partial.open("wb") as sink:
        sink.writelines(lines(found))
    traces = len({span.trace for span in found})
    if json:
        emit({"run": run, "out": str(out), "spans": len(found), "traces": traces})
    else:
        say(f"{len(found)} spans in {traces} traces of '{run}' are in {out}")
    return DONE

"""What every group of commands shares: options, exit codes, output, and how an asynchronous command is run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

DONE, FAILED, USAGE, BUDGET, INTERRUPTED = 0, 1, 2, 3, 130
STORE = Path(".resia")

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the embedded log, blobs and worker logs.")]
NatsOption = Annotated[
    str | None,
    typer.Option(
        "--nats", envvar="RESIA_NATS", help="An external NATS server instead: nats://user:pass@host, or a login file."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics", metavar="[HOST:]PORT", envvar="RESIA_METRICS", help="Serve Prometheus metrics at /metrics."
    ),
]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder of pulled assets.")]
UnsafeOption = Annotated[bool, typer.Option("--unsafe-local", help="Run the file without a sandbox if there is none.")]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM while a command ran. Typer would end quietly on KeyboardInterrupt."""


def say(text: str) -> None:
    """One line to the person, on standard error."""
    sys.stderr.write(f"resia: {text}\n")


def emit(value: object) -> None:
    """One JSON line on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value, order="deterministic").decode() + "\n")
    sys.stdout.flush()


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end. A group of errors is reported by its first, and Ctrl-C stops the workers in order."""
    import signal

    from .logs import configure_command_logs

    configure_command_logs()

    async def stoppable() -> Any:
        task = asyncio.ensure_future(work)
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted from None

    try:
        return asyncio.run(stoppable())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(cause: BaseException) -> BaseException:
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


def show(view: Coroutine[Any, Any, Any], json: bool) -> int:
    """`print_shown` of a view that is made asynchronously."""
    return print_shown(run_async(view), json)


def print_shown(shown: Any, json: bool) -> int:
    """Print a `views.Shown`: its JSON lines, or its text; the exit code it asks for."""
    if json:
        for line in shown.lines:
            emit(line)
    else:
        from rich.console import Console

        console = Console()
        for part in shown.parts:
            console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    return int(shown.code)

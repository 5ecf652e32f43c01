"""A run's settings from the command line: the options of every command that begins runs, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resia.events.errors import UnknownName

if TYPE_CHECKING:
    from resia.events import RunRequested, RunSettings

    from .store import Store

DomainOption = Annotated[str | None, typer.Option("--domain", help="The problem to improve on: a name, or FILE.py.")]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode", help="H edits the harness, W trains weights, W+H does both; random and best-of-n learn nothing."
    ),
]
AlgorithmOption = Annotated[
    str | None, typer.Option("--algorithm", help="Train with this one only; default: the rules choose.")
]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="Choose algorithms and edits by this file of resia policy fit.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Everything sampled derives from it.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value.")]
WorkersOption = Annotated[
    list[str] | None, typer.Option("--workers", help="Processes of a role, as task=2; none: all elsewhere.")
]


def overrides(chosen: dict[str, Any], sets: list[str] | None) -> list[str]:
    """The options that were given, by the names of their settings, as --set takes them; UnknownName for a name that
    is in no list."""
    _check_names(chosen)
    return [*(f"{k}={_toml(v)}" for k, v in chosen.items() if v is not None), *(sets or [])]


def _check_names(chosen: dict[str, Any]) -> None:
    """Closed lists are checked here, where the nearest valid names can be offered."""
    from resia.domains.files import is_file
    from resia.domains.registry import domain_names
    from resia.events.settings import ALGORITHMS, MODES

    for key, valid in (("domain", domain_names()), ("loop.mode", MODES), ("algorithm", ALGORITHMS)):
        if key == "domain" and is_file(str(chosen.get(key))):
            continue
        if chosen.get(key) is not None and chosen[key] not in valid:
            raise UnknownName(key.rpartition(".")[2], str(chosen[key]), valid)


def _toml(value: object) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def requested(settings: RunSettings, policy: Path | None, cache: Path | None) -> RunRequested:
    """The first event of a run, every check made."""
    from .policies import pinned
    from .session import first_event

    return first_event(settings, cache) if policy is None else pinned(settings, policy, cache)


def show_estimate(settings: RunSettings, store: Store, cache: Path | None, json: bool) -> int:
    """Print what a run under `settings` would ask for. Loads no model."""
    from .cli_options import print_shown, run_async
    from .estimate import estimate
    from .estimate_view import shown
    from .past import past_of
    from .resources import domain_for

    past = run_async(past_of(store, settings))
    return print_shown(shown(estimate(settings, domain_for(settings, cache), past)), json)

"""The command that says what a run would spend before it does."""

from __future__ import annotations

import typer

from .cli_options import STORE, CacheOption, JsonOption, NatsOption, StoreOption
from .cli_settings import (
    AlgorithmOption,
    ConfigOption,
    DomainOption,
    ModeOption,
    PolicyOption,
    SeedOption,
    SetOption,
    overrides,
    show_estimate,
)


def register(app: typer.Typer) -> None:
    """Add this group's command to the command line."""
    app.command()(estimate)


def estimate(
    domain: DomainOption = None,
    mode: ModeOption = None,
    algorithm: AlgorithmOption = None,
    policy: PolicyOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """What a run with these options would ask for: rollouts, tokens, time and money, expected and at most.

    Reads the store for what past runs measured; loads no model and needs none here. resia run --dry-run also makes the
    checks of a run.
    """
    from .config import load_settings
    from .policies import read_policy
    from .store import Store

    chosen = {"domain": domain, "loop.mode": mode, "algorithm": algorithm, "seed": seed}
    settings = load_settings(config, overrides(chosen, set_))
    if policy is not None:
        read_policy(policy)  # which algorithms it draws is not known before a run; that it can be read is
    return show_estimate(settings, Store(store, nats), cache, json)

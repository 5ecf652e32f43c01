"""Commands of the choice of an algorithm: the six with their masks, and a policy fitted from past runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import STORE, JsonOption, NatsOption, StoreOption, print_shown, run_async
from .newfile import check_new, new_file

policy_app = typer.Typer(help="A choice of algorithms and operators learned from finished runs.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(algorithms)
    app.add_typer(policy_app, name="policy")


def algorithms(json: JsonOption = False) -> int:
    """The six training algorithms: what masks each, which rules choose it, and its paper."""
    import msgspec

    from resia.agents.algorithms import describe

    from .views import Shown

    found = describe()
    parts: list[str] = []
    for one in found:
        kind = "on-policy" if one.on_policy else "from recorded rollouts"
        parts += [f"{one.algorithm}: {one.title} ({kind}); learns from {one.learns_from}"]
        parts += [f"  masked: {why}" for why in one.masks]
        parts += [f"  {rule}: {when}" for rule, when in one.rules.items()]
        parts += [f"  source: {one.source}", ""]
    return print_shown(Shown(tuple(msgspec.to_builtins(one) for one in found), tuple(parts[:-1])), json)


@policy_app.command("fit")
def fit(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs; the order changes nothing.")],
    out: Annotated[Path, typer.Option("--out", help="A new file, for resia run --policy.")],
    epsilon: Annotated[float, typer.Option(help="Share of decisions drawn evenly, above 0 and at most 1.")] = 0.1,
    exploration: Annotated[float, typer.Option(help="Weight of the confidence bonus, 0 to 1.")] = 0.2,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    json: JsonOption = False,
) -> int:
    """Fold the logs of finished runs into a frozen policy, and say what it would have gained on their decisions."""
    from resia.events.errors import UsageError

    from .policies import fitted, shown
    from .store import Store

    if not 0.0 < epsilon <= 1.0:
        raise UsageError(f"--epsilon is {epsilon:g}: give a share above 0 and at most 1, so that propensities are real")
    if not 0.0 <= exploration <= 1.0:
        raise UsageError(f"--exploration is {exploration:g}: give a number from 0 to 1")
    check_new(out)
    judged = run_async(fitted(Store(store, nats), runs, epsilon, exploration))
    with new_file(out) as partial:
        partial.write_bytes(judged.policy.encoded())
    return print_shown(shown(judged, out), json)

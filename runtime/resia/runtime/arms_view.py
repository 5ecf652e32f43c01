"""A comparison of arms as JSON lines and as a table."""

from __future__ import annotations

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .arms import ArmLine, Arms, Effect, lines, states
from .cli_options import DONE, FAILED
from .store import Store
from .views import Shown

WIDE = 112  # columns that one table of everything needs


async def arms_view(store: Store, arms: Arms) -> Shown:
    """Every arm's line, with what each may spend stated first; exit code 1 where a run failed."""
    found = lines(arms, await states(store, arms))
    code = FAILED if any(line.failed for line in found) else DONE
    return Shown(tuple(msgspec.to_builtins(line) for line in found), tuple(_parts(arms, found)), code)


def _parts(arms: Arms, found: list[ArmLine]) -> list[RenderableType]:
    base = arms.base
    seeds = f"{len(arms.seeds)} seed{'s' * (len(arms.seeds) != 1)} from {arms.seeds[0]}"
    head = (
        f"{base.domain} with {base.engine.model}: {seeds}, each run with a budget of {base.loop.token_budget:,} tokens."
        f" Differences to {arms.reference}, paired by seed and item, with 95% intervals over seeds and items."
    )
    scores = ["arm", "seeds", "valid", "test", "tokens a run", *([base.price.currency] if _paid(found) else [])]
    effects = ["validation difference", "test difference"]
    tables = (
        [[*scores, "coverage", *effects]] if Console().width >= WIDE else [[*scores, "coverage"], ["arm", *effects]]
    )
    parts: list[RenderableType] = [head, *(_table(arms, found, names) for names in tables)]
    if "random" in arms.arms:
        parts.append("random scores as many answers on items as its tokens would have paid for rollouts.")
    return [*parts, *(f"{line.arm}, {note}" for line in found for note in line.notes)]


def _paid(found: list[ArmLine]) -> bool:
    return any(line.money for line in found)


def _table(arms: Arms, found: list[ArmLine], names: list[str]) -> Table:
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        view.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for line in found:
        cells = _cells(line, line.arm == arms.reference)
        view.add_row(*(cells[name] for name in names))
    return view


def _cells(line: ArmLine, own: bool) -> dict[str, Text]:
    """A row by column; `own` is the reference's, which is compared with nothing."""
    texts = {
        "arm": line.arm,
        "seeds": str(len(line.runs) - line.failed),
        "valid": _score(line.validation),
        "test": _score(line.test),
        "tokens a run": f"{line.tokens:,}",
        line.currency: f"{line.money:.4f}",
        "coverage": "-" if line.coverage is None else f"{line.coverage:.0%}",
        "validation difference": "reference" if own else _effect(line.validation_effect),
        "test difference": "reference" if own else _effect(line.test_effect),
    }
    return {name: Text(text) for name, text in texts.items()}


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _effect(found: Effect | None) -> str:
    return "-" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"

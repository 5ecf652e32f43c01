"""An estimate as a JSON line and as text."""

from __future__ import annotations

import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .estimate import Estimate
from .views import Shown


def shown(found: Estimate) -> Shown:
    """Both forms."""
    items = ", ".join(f"{count} {split}" for split, count in found.items.items())
    head = (
        f"{found.domain} with {found.model}, mode {found.mode}: {items} items, at most {found.max_iterations}"
        f" iterations and {found.token_budget:,} tokens"
    )
    parts: list[RenderableType] = [head, found.sizes, found.speed, found.levers, found.overrun, _table(found)]
    return Shown((msgspec.to_builtins(found),), tuple(parts))


def _table(found: Estimate) -> Table:
    prices = found.run.money_most > 0
    names = ["", "rollouts", "most", "tokens", "most", "s", *([found.currency, "most"] if prices else [])]
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        view.add_column(name, justify="right" if name else "left", no_wrap=True)
    for part in (*found.parts, found.run):
        cells = [
            f"{part.rollouts:,}",
            "-" if part.rollouts_most is None else f"{part.rollouts_most:,}",
            f"{part.tokens:,}",
            f"{part.tokens_most:,}",
            "?" if part.seconds is None else f"{part.seconds:,.0f}",
            *([f"{part.money:.4f}", f"{part.money_most:.4f}"] if prices else []),
        ]
        view.add_row(Text(part.name), *cells, style="bold" if part is found.run else None)
    return view

"""The experiment memory as a table: which edits were tried, and what each of them did."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from resia.replay.memory import TriedEdit

from .console import OUTCOMES, WIDE

_SHORT = 8  # characters of a digest
_NARROW = ("it", "edit", "gate", "failures moved")
_ALL = ("it", "edit", "component", "harness", "gate", "effect", "failures moved")


def edits_table(edits: Sequence[TriedEdit], width: int) -> Table:
    """One edit a row; under it why it was made, or why there was nothing to measure."""
    names = _ALL if width >= WIDE else _NARROW
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        wraps = name in ("edit", "failures moved")
        view.add_column(name, justify="right" if name == "it" else "left", no_wrap=not wraps, overflow="fold")
    for edit in edits:
        cells = _cells(edit)
        view.add_row(*(cells[name] for name in names))
    return view


def _cells(edit: TriedEdit) -> dict[str, Text]:
    effect = "" if edit.effect is None else f"{edit.effect:+.2f} [{edit.ci_low:+.2f}, {edit.ci_high:+.2f}]"
    moved = ", ".join(f"{kind} {m.before} to {m.after}" for kind, m in edit.moved.items())
    why = edit.rationale or edit.why
    return {
        "it": Text(str(edit.iteration)),
        "edit": Text(edit.operator.replace("+", " ")),
        "component": Text(edit.component or ""),
        "harness": Text(" to ".join(d[:_SHORT] for d in (edit.parent, edit.harness) if d)),
        "gate": Text(edit.outcome, style=OUTCOMES.get(edit.outcome, "dim")),
        "effect": Text(effect),
        "failures moved": Text("\n".join(filter(None, (moved, why)))),
    }

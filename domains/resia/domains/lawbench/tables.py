"""Facts from a table: a CSV, JSON or JSON-lines file, or a data set that the package `datasets` loads.

A row has the facts and the charge or charges, and may say its split. The paper's 191-class task is such a table.
`datasets` is imported only when a data set is asked for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resia.events import Split
from resia.events.errors import UnknownName, UsageError

from .charges import SEPARATOR, written
from .facts import SPLITS, Fact
from .records import read_json

SUFFIXES = (".csv", ".json", ".jsonl")
SPLIT_COLUMN = "split"
MAX_CELL = 1 << 24  # characters


class Columns(NamedTuple):
    """How a table names things; `splits` are its names for search, validation and test."""

    fact: str
    charge: str
    splits: tuple[str, str, str]

    def split(self, name: object) -> Split | None:
        """The split that a table means by `name`; None for none of the three."""
        return SPLITS[self.splits.index(str(name))] if str(name) in self.splits else None


def read_table(path: Path, columns: Columns) -> tuple[Fact, ...]:
    """Facts of a file, in its order. UsageError names the file, the row and what is wrong with it."""
    rows = list(_rows(path))
    if not rows:
        raise UsageError(f"{path} has no rows: give a header and one row a fact")
    return tuple(_fact(str(path), number, row, columns) for number, row in enumerate(rows))


def _rows(path: Path) -> Iterator[Mapping[str, object]]:
    if path.suffix == ".csv":
        yield from _csv(path)
    elif path.suffix == ".jsonl":
        yield from (_line(path, number, line) for number, line in enumerate(_lines(path), start=1) if line.strip())
    else:
        held = read_json(path)
        if not isinstance(held, list) or not all(isinstance(row, dict) for row in held):
            raise UsageError(f"{path} is no list of objects: give one object a fact")
        yield from held


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as cause:
        raise UsageError(f"{path} cannot be read ({cause.strerror}): check the path") from None
    except UnicodeDecodeError as cause:
        raise UsageError(f"{path} is not UTF-8 at byte {cause.start}: save it as UTF-8") from None


def _line(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise UsageError(f"line {number} of {path} is no JSON ({cause}): it may be cut off, get it again") from None
    if not isinstance(row, dict):
        raise UsageError(f"line {number} of {path} is no object: give one object a fact")
    return row


def _csv(path: Path) -> Iterator[dict[str, object]]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader((f"{line}\n" for line in _lines(path)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                raise UsageError(f"line {reader.line_num} of {path} has not the {width} columns of its header: mend it")
            yield dict(row)
    except csv.Error as cause:
        raise UsageError(f"line {reader.reader.line_num} of {path} is no CSV ({cause}): save it again") from None


def _fact(source: str, number: int, row: Mapping[str, object], columns: Columns, split: Split | None = None) -> Fact:
    for column in (columns.fact, columns.charge):
        if column not in row:
            raise UsageError(
                f"row {number} of {source} has no column '{column}', only {', '.join(map(str, row))[:200]}: "
                "name it with the options fact_column and charge_column"
            )
    text, cell = row[columns.fact], row[columns.charge]
    if any(isinstance(part, dict | list) for part in (cell if isinstance(cell, list) else [cell])):
        raise UsageError(f"row {number} of {source} has no text as its charge but {cell!r:.60}: give a text, or a list")
    charges = _charges(cell)
    if not isinstance(text, str) or not text.strip() or not charges:
        raise UsageError(f"row {number} of {source} lacks its facts or its charge: fill them in or leave the row out")
    given = row.get(SPLIT_COLUMN)
    if split is None and given is not None:
        split = columns.split(given)
        if split is None:
            raise UnknownName(f"split of row {number} of {source}", str(given)[:80], columns.splits)
    return Fact(f"row/{number}", text.strip(), charges, split)


def _charges(cell: object) -> tuple[str, ...]:
    parts = cell if isinstance(cell, list) else str(cell or "").split(SEPARATOR)
    return tuple(sorted({written(str(part)) for part in parts if written(str(part))}))


def read_hub(name: str, config: str, revision: str, columns: Columns) -> tuple[Fact, ...]:
    """Facts of a data set by its name on the hub, or of a folder that `datasets` can load, in the order of the splits.

    A split that is named as none of `columns.splits` is left out. UsageError where there is nothing to be had.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        held: Any = datasets.load_dataset(name, config or None, revision=revision or None)
    except Exception as cause:  # any failure of the network, of the hub or of the data set's own files
        why = str(cause).strip().partition("\n")[0][:200]
        raise UsageError(
            f"data set '{name}' cannot be loaded ({type(cause).__name__}: {why}): check the options hub, hub_config and"
            " hub_revision, or give a file as the option path"
        ) from cause
    parts = [(split, held[split]) for split in columns.splits if split in held]
    if not parts:
        raise UnknownName(f"split of data set '{name}'", columns.splits[0], held)
    return tuple(_numbered(name, parts, columns))


def _numbered(name: str, parts: Iterable[tuple[str, Any]], columns: Columns) -> Iterator[Fact]:
    number = 0
    for split, rows in parts:
        labels = _labels(rows, columns.charge)
        for row in rows:
            told = {**row, SPLIT_COLUMN: split}
            if labels and columns.charge in row:
                told[columns.charge] = _named(row[columns.charge], labels)
            yield _fact(f"data set '{name}'", number, told, columns)
            number += 1


def _labels(rows: Any, column: str) -> Sequence[str]:
    """What the numbers of a column stand for, where the data set says so: a `datasets.ClassLabel`, or a list of it."""
    feature = rows.features.get(column)
    return getattr(getattr(feature, "feature", feature), "names", None) or ()


def _named(cell: Any, labels: Sequence[str]) -> list[str]:
    """The labels of one number or several; -1 and nothing are how a data set says that it knows none."""
    numbers = cell if isinstance(cell, list) else [cell]
    return [labels[number] for number in numbers if number is not None and 0 <= number < len(labels)]

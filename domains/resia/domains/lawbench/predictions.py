"""A file of predictions, and what it is worth under a protocol: bad entries are counted as what they are.

Forms: LawBench's own JSON (an object of {"0": {"prediction": ..., "refr": ...}}), a JSON list in the order of the
records, JSON lines and CSV with `id` and `prediction`. `failure` in place of a prediction says why there is none.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

from resia.domains.base import FileScore
from resia.events import Split
from resia.events.errors import UsageError

from .charges import Charges, written
from .facts import SPLITS, Fact
from .records import ANSWERED, TASK, read_json
from .scoring import EMPTY, Protocol, judge_text
from .tables import MAX_CELL

MAX_DIGITS = 10  # of a record's number
MISSING, UNREADABLE, UNKNOWN_ID, REPEATED_ID, FAILED = "missing", "unreadable", "unknown_id", "repeated_id", "failed"


class Prediction(NamedTuple):
    """One entry: what it answers, its text (None: it failed, and `failure` says how), the gold it was made for."""

    id: str
    text: str | None
    failure: str = ""
    gold: tuple[str, ...] = ()


def score_predictions(
    protocol: Protocol, path: Path, facts: Mapping[Split, Sequence[Fact]], charges: Charges
) -> tuple[FileScore, ...]:
    """One score for each split that the file answers a fact of. Raises UsageError as `FileScored.score_file` does."""
    entries = [_prediction(key, value) for key, value in _entries(path)]
    if not any(entries):
        raise UsageError(f"{path} has no entry that can be read: give each an id and a prediction as text, in UTF-8")
    ignored: Counter[str] = Counter(UNREADABLE for entry in entries if entry is None)
    known = {fact.id: fact for held in facts.values() for fact in held}
    given: dict[str, Prediction] = {}
    for entry in (entry for entry in entries if entry is not None):
        fact = next((known[name] for name in _names(entry.id) if name in known), None)
        if fact is None or fact.id in given:
            ignored[REPEATED_ID if fact else UNKNOWN_ID] += 1
            continue
        if entry.gold and set(entry.gold) != set(fact.charges):
            raise UsageError(f"answer {entry.id} of {path} was made for other facts than {fact.id}: give the same data")
        given[fact.id] = entry
    if not given:
        raise UsageError(f"{path} answers no problem of protocol {protocol}: its ids are {_some(entries)}")
    answered = [split for split in SPLITS if any(fact.id in given for fact in facts[split])]
    return tuple(_score(protocol, split, facts[split], given, charges, ignored) for split in answered)


def _score(
    protocol: Protocol,
    split: Split,
    facts: Sequence[Fact],
    given: Mapping[str, Prediction],
    charges: Charges,
    ignored: Mapping[str, int],
) -> FileScore:
    """Means over all of `facts`: one without an answer is scored as a blank text, and counted as what it is."""
    sums: dict[str, list[float]] = {}
    invalid: Counter[str] = Counter()
    for fact in facts:
        entry = given.get(fact.id, Prediction(fact.id, None, MISSING))
        verdict = judge_text(protocol, entry.text or "", fact.charges, charges)
        for name, value in verdict.scores.items():
            sums.setdefault(name, []).append(value)
        if why := entry.failure or verdict.invalid:
            invalid[why] += 1
    answered = sum(bool((given[fact.id].text or "").strip()) for fact in facts if fact.id in given)
    scores = {name: fsum(values) / len(facts) for name, values in sums.items()}
    return FileScore(protocol, split, len(facts), answered, answered / len(facts), scores, dict(invalid), dict(ignored))


def _names(written_id: str) -> Iterator[str]:
    """The fact ids that an id of a file may stand for: LawBench numbers its records, and tables their rows."""
    yield written_id
    if written_id.isdecimal() and len(written_id) < MAX_DIGITS:
        yield from (f"{TASK}/{int(written_id):03d}", f"row/{int(written_id)}", f"made/{int(written_id):03d}")


def _some(entries: Iterable[Prediction | None]) -> str:
    names = [entry.id[:40] for entry in entries if entry is not None]
    return ", ".join(names[:3]) + (" and so on" if len(names) > 3 else "")


def _prediction(key: str, value: object) -> Prediction | None:
    """An entry as far as it can be read; None for one of no known form."""
    if isinstance(value, str):
        return Prediction(key, value)
    if not isinstance(value, Mapping):
        return None
    name, text, failure, gold = (value.get(field) for field in ("id", "prediction", "failure", "refr"))
    name = str(name) if name is not None else key
    if not name or not (isinstance(text, str) or failure or (text is None and "prediction" in value)):
        return None
    golds = _gold(gold) if isinstance(gold, str) else ()
    if failure:
        return Prediction(name, None, f"{FAILED}_{_word(failure)}", golds)
    return Prediction(name, text, "", golds) if isinstance(text, str) else Prediction(name, None, EMPTY, golds)


def _word(failure: object) -> str:
    """What a file calls a failure, as it can be printed: one line, and a question mark for what no terminal shows."""
    line = " ".join(str(failure).split())
    return "".join(character if character.isprintable() else "?" for character in line)[:50]


def _gold(text: str) -> tuple[str, ...]:
    return tuple(written(name) for name in text.removeprefix(ANSWERED).split(";") if name)


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    """Key and value of every entry; a value of no known form stands for one that cannot be read."""
    if path.suffix == ".json":
        held: Any = read_json(path)
        if not isinstance(held, dict | list) or not held:
            raise UsageError(f"{path} holds no predictions: give an object or a list of them")
        pairs = held.items() if isinstance(held, dict) else enumerate(held)
        yield from ((str(key), value) for key, value in pairs)
        return
    if path.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"predictions '{path}' are of no known form: give a .json, .jsonl or .csv file")
    text = _text(path)
    yield from _csv(path, text) if path.suffix == ".csv" else _lines(text)


def _text(path: Path) -> str:
    """The file's text. A byte that is no UTF-8 is kept as half a character, by which `_undecoded` knows its entry."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as cause:
        raise UsageError(f"{path} cannot be read ({cause.strerror}): check the name given to --predictions") from None
    if not text.strip():
        raise UsageError(f"{path} is empty: give at least one prediction")
    return text


def _undecoded(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text)


def _lines(text: str) -> Iterator[tuple[str, object]]:
    """Lines have no order that anyone promised, so each must have its id."""
    for line in text.split("\n"):
        try:
            if line.strip():
                yield "", None if _undecoded(line) else json.loads(line)
        except (ValueError, RecursionError):
            yield "", None


def _csv(path: Path, text: str) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(MAX_CELL)
    # Not splitlines: a text may hold the other characters that end a line for it, such as U+2028.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = set(reader.fieldnames or ())
    except csv.Error:
        columns = set()
    if not {"id", "prediction"} <= columns:
        raise UsageError(f"{path} has no columns id and prediction: name them in its first line")
    while True:
        try:
            yield _cells(next(reader))
        except StopIteration:
            return
        except csv.Error:
            yield "", None


def _cells(row: Mapping[str | None, str | None]) -> tuple[str, object]:
    """A row as an entry; one with too many or too few cells cannot be read, nor one in another encoding."""
    if None in row or None in row.values() or any(_undecoded(cell) for cell in row.values() if cell):
        return "", None
    given = {name: row[name] for name in ("id", "prediction", "failure", "refr") if row.get(name)}
    return row["id"] or "", {"prediction": "", **given}

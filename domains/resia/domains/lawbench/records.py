"""The benchmark's own files: task 3-3, which asks for the charges, and task 3-1, whose questions hold them.

A folder as the benchmark has it (`zero_shot/3-3.json`), or the files themselves in it. Every record is checked as it
is read. Knows nothing of splits but the published 200/50/100 of 3-3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resia.events import Split
from resia.events.errors import UsageError

from .charges import SEPARATOR, UNLISTED, written
from .facts import Fact

TASK, OTHER_TASK = "3-3", "3-1"
RECORDS, NAMES = 500, 202
SPLIT_FILE = "split_meta_harness_200_50_100.json"
_FACTS, ANSWERED = "事实:", "罪名:"
_SPLIT_NAMES: Mapping[str, Split] = {"train": "search", "val": "validation", "test": "test"}


def read_json(path: Path) -> Any:
    """What a JSON file holds; UsageError for one that is not there, empty or cut off."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if text.strip() else _empty(path)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read ({cause.strerror}): check the path") from None
    except UnicodeDecodeError as cause:
        raise UsageError(f"{path} is not UTF-8 at byte {cause.start}: save it as UTF-8") from None
    except (ValueError, RecursionError) as cause:
        raise UsageError(f"{path} is no whole JSON file ({cause}): it may be cut off, get it again") from None


def _empty(path: Path) -> Any:
    raise UsageError(f"{path} is empty: get it again")


def read_folder(folder: Path) -> tuple[Fact, ...]:
    """Facts of 3-3 in the file's order, then those of 3-1 where that file is there. UsageError says what is wrong."""
    facts = _task(_find(folder, TASK), TASK)
    other = _find(folder, OTHER_TASK, needed=False)
    return (*facts, *(_task(other, OTHER_TASK) if other.is_file() else ()))


def _find(folder: Path, task: str, needed: bool = True) -> Path:
    places = [folder / part / f"{task}.json" for part in ("zero_shot", "data/zero_shot", ".")]
    found = next((place for place in places if place.is_file()), places[0])
    if needed and not found.is_file():
        raise UsageError(f"{folder} has no zero_shot/{task}.json: give LawBench's data folder as the option path")
    return found


def _task(path: Path, task: str) -> tuple[Fact, ...]:
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise UsageError(f"{path} is no list of records: give LawBench's own file")
    return tuple(_record(path, task, number, record) for number, record in enumerate(records))


def _record(path: Path, task: str, number: int, record: object) -> Fact:
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("question", "answer")):
        raise UsageError(f"record {number} of {path} has no question and answer as text: give LawBench's own file")
    text = record["question"].removeprefix(_FACTS)
    if task == TASK:
        named = record["answer"].removeprefix(ANSWERED)
    else:
        # The charge stands at the end of the question. A fact may quote the words too: only the last ones are it.
        text, _, named = text.rpartition(ANSWERED)
    charges = tuple(sorted({written(name) for name in named.split(SEPARATOR) if written(name)}))
    if not text.strip() or not charges:
        raise UsageError(f"record {number} of {path} lacks its facts or its charge: fetch the file again")
    return Fact(f"{task}/{number:03d}", text.strip(), charges)


def check_whole(facts: Sequence[Fact]) -> None:
    """UsageError unless 3-3 is all there: 500 records, whose 202 names hold the 13 that the official list lacks."""
    own = [fact for fact in facts if fact.id.startswith(f"{TASK}/")]
    names = {name for fact in own for name in fact.charges}
    if len(own) != RECORDS or len(names) != NAMES or not names >= UNLISTED:
        raise UsageError(
            f"protocol official needs task 3-3 whole, {RECORDS} records of {NAMES} charges, and the data have"
            f" {len(own)} records of {len(names)}: give LawBench's data folder as the option path"
        )


def read_split(folder: Path) -> dict[str, Split]:
    """Fact id to split, of the published 200/50/100. UsageError for a file that is not there or names no records."""
    path = folder / SPLIT_FILE
    if not path.is_file():
        raise UsageError(f"protocol set-exact needs {SPLIT_FILE} in {folder}: put it there, or choose protocol single")
    held = read_json(path)
    splits: dict[str, Split] = {}
    for name, split in _SPLIT_NAMES.items():
        numbers = held.get(name) if isinstance(held, dict) else None
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < RECORDS for n in numbers):
            raise UsageError(f"{path} has no list '{name}' of record numbers, 0 to {RECORDS - 1}: fetch it again")
        for number in numbers:
            if splits.setdefault(f"{TASK}/{number:03d}", split) != split:
                raise UsageError(f"{path} puts record {number} into two splits: fetch it again")
    return splits

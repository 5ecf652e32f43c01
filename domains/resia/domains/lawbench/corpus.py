"""The facts of a run: read from the options' source, repeated texts merged, divided as the protocol says.

- `official`: every record of 3-3 is the test; facts that only 3-1 has are drawn into search and validation.
- `set-exact`: the published 200/50/100 of 3-3; a table's own splits; else drawn.
- `single`: facts of one charge, a table's own splits or drawn, stratified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resia.events import Split
from resia.events.errors import UsageError

from . import facts as values
from . import records, tables
from .charges import Charges
from .facts import Fact
from .options import LawBenchOptions
from .splits import SHARES, Layout, lay_out
from .synthetic import synthetic_facts

# Of a source that gives no validation split, or of facts that only 3-1 has.
NO_TEST: Mapping[Split, float] = {"search": 6 / 7, "validation": 1 / 7}


class Corpus(NamedTuple):
    """Facts by split, the closed list of charges, and what became of records that are not there twice.

    `charges` are the names of the whole source, whatever the protocol leaves out.
    """

    layout: Layout
    charges: Charges
    repeated: int
    contradictory: int
    digest: str


def load(options: LawBenchOptions) -> Corpus:
    """Read and divide. Raises UsageError for a source that cannot be used or is not of the protocol."""
    found = _read(options)
    values.check_text(found)
    charges = Charges(name for fact in found for name in fact.charges)
    if options.protocol == "official" and not options.synthetic:
        records.check_whole(found)
    held = values.merged(found)
    chosen = _of_protocol(held.facts, options)
    shares = SHARES if all(fact.split is None for fact in chosen) else NO_TEST
    layout = lay_out(chosen, options.data_seed, shares)
    if not layout.facts["test"]:
        raise UsageError(f"protocol {options.protocol} leaves no fact of {len(found)} for the test: give more facts")
    divided = [fact for split in values.SPLITS for fact in layout.facts[split]]
    return Corpus(layout, charges, held.repeated, held.contradictory, values.digest(divided))


def _read(options: LawBenchOptions) -> tuple[Fact, ...]:
    if options.synthetic:
        return synthetic_facts(options.data_seed)
    splits = (options.search_split, options.validation_split, options.test_split)
    columns = tables.Columns(options.fact_column, options.charge_column, splits)
    if options.hub:
        return tables.read_hub(options.hub, options.hub_config, options.hub_revision, columns)
    path = Path(options.path)
    if path.is_dir():
        return records.read_folder(path)
    if path.suffix not in tables.SUFFIXES:
        raise UsageError(
            f"'{path}' is neither a folder nor a table: give LawBench's folder or a {', '.join(tables.SUFFIXES)} file"
        )
    return tables.read_table(path, columns)


def _of_protocol(facts: Sequence[Fact], options: LawBenchOptions) -> list[Fact]:
    folder = Path(options.path) if options.path and Path(options.path).is_dir() else None
    if options.protocol == "single":
        return _with_validation([fact for fact in facts if len(fact.charges) == 1])
    if options.protocol == "official":
        own = f"{records.TASK}/"
        return [fact._replace(split="test") if fact.id.startswith(own) else fact for fact in facts]
    if folder is None:
        return _with_validation(facts)
    given = records.read_split(folder)
    placed = [fact._replace(split=given.get(fact.id)) for fact in facts]
    if options.all_facts:
        return [fact._replace(split=fact.split or "search") for fact in placed]
    return [fact for fact in placed if fact.split is not None]


def _with_validation(facts: Sequence[Fact]) -> list[Fact]:
    """Facts of a table without a validation split draw theirs from the search; without a test, all is drawn."""
    given = {fact.split for fact in facts}
    if "test" not in given:
        return [fact._replace(split=None) for fact in facts]
    if "validation" in given:
        return [fact._replace(split=fact.split or "search") for fact in facts]
    return [fact._replace(split=None) if fact.split == "search" else fact for fact in facts]

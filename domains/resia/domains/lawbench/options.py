"""What a person may choose of the domain: protocol, source of the facts, sizes and seed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from resia.events.errors import UsageError

from .scoring import Protocol

Count = Annotated[int, Meta(ge=0, le=9999)]


class LawBenchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One source of: `path`, the folder of LawBench's files or a table (.csv, .json, .jsonl); `hub`, the name of a data
    set; `synthetic`, made-up cases for tests and examples.

    `..._items` of a split are asked about, 0 for all of it; what the tools learn from is the whole search split.
    `fact_chars` is how much of the facts the agent is told, 0 for all; the tools read all of them. `all_facts` adds
    every record that a published split leaves over to the search. The last six say how a table or data set names
    things.
    """

    protocol: Protocol = "single"
    path: str = ""
    hub: str = ""
    synthetic: bool = False
    search_items: Count = 24
    validation_items: Count = 48
    test_items: Count = 96
    fact_chars: Annotated[int, Meta(ge=0)] = 300
    all_facts: bool = False
    data_seed: Count = 0
    fact_column: str = "fact"
    charge_column: str = "charge"
    search_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    hub_config: str = ""
    hub_revision: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.path, self.hub, self.synthetic))) != 1:
            raise UsageError(
                "the lawbench domain needs one source of facts: the option path, the folder of LawBench's data or a"
                " table; hub, a data set's name; or synthetic=true"
            )


# Where the data lie is no part of what they are.
PLACES = ("path", "hub", "hub_revision")

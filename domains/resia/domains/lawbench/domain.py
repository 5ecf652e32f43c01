"""The LawBench domain: options, items, scores, tools and controls put together.

A fact's charges leave this module in no prompt, no detail and no tool's answer about that fact. Knows nothing of who
asks, and reads no file but what its options name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from resia.domains.base import Answer, FileScore, Inside, Item, Score, TaskSpec, Value
from resia.events import ControlScore, Split
from resia.events.errors import UnknownName
from resia.events.ids import sha256

from . import controls, tool, tools
from .charges import SEPARATOR
from .corpus import Corpus, load
from .facts import SPLITS, Fact
from .learned import Learned
from .options import PLACES, LawBenchOptions
from .predictions import score_predictions
from .records import ANSWERED
from .scoring import PROTOCOLS, REWARD, judge_charges
from .splits import sample

CUT = "…"


class LawBench:
    """Implements `resia.domains.base.Domain` and `FileScored`; see there. Raises UsageError for data it cannot use."""

    Options = LawBenchOptions

    def __init__(self, options: LawBenchOptions) -> None:
        self._options = options
        self._corpus = load(options)
        self._spec = tool.spec(self._corpus.charges, options.protocol)
        places = dict.fromkeys(PLACES, "")
        fixed = msgspec.json.encode({**msgspec.structs.asdict(options), **places}, order="deterministic")
        self._digest = sha256(fixed + self._corpus.digest.encode() + "\n".join(self._corpus.charges.names).encode())
        sizes = dict(zip(SPLITS, (options.search_items, options.validation_items, options.test_items), strict=True))
        layout = self._corpus.layout
        self._asked = {split: sample(layout.facts[split], sizes[split], options.data_seed) for split in SPLITS}
        self._items = {split: tuple(self._item(split, fact) for fact in self._asked[split]) for split in SPLITS}
        self._facts = {fact.id: fact for split in SPLITS for fact in self._asked[split]}
        self._learned = Learned(layout.facts["search"], layout.group)

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def digest(self) -> str:
        return self._digest

    @property
    def corpus(self) -> Corpus:
        """The facts by split, and what became of repeated ones and near-duplicates."""
        return self._corpus

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return tool.parse(request, self._corpus.charges, self._options.protocol)

    def render(self, answer: Answer) -> str:
        return tool.render(answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Success is a reward of 1: the right charge, or the right set of them. Raises ValueError for no valid answer
        and UnknownName for no item."""
        fact = self._fact(item)
        metrics = self._judged(fact, tool.names(self.parse(answer)))
        name = REWARD[self._options.protocol]
        return Score(metrics[name], metrics[name] == 1.0, None, f"{name} {metrics[name]:.3f}", metrics)

    def inside(self, item: str) -> Inside:
        """For the admission tests alone."""
        fact = self._fact(item)
        gold = SEPARATOR.join(self._corpus.charges.ordered(fact.charges))
        named = tuple(f"{ANSWERED}{name}" for name in fact.charges)  # as the question of 3-1 ends
        return Inside({tool.ARGUMENT: gold}, named, frozenset({fact.text}))

    def call(self, tool: str, item: str, arguments: Mapping[str, object]) -> object:
        """What one of `tools.OFFERED` gives on an item. Raises ValueError for arguments, UnknownName for no item."""
        return tools.call(self._learned, tool, self._fact(item), arguments)

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """Majority, random names, the nearest case and the SVM; none of them costs a scoring of `budget`."""
        del budget
        charges, searched = self._corpus.charges, self._corpus.layout.facts["search"]
        guesses = controls.guesses(self._learned, searched, charges.names, seed)
        reward = REWARD[self._options.protocol]
        found = []
        for split in SPLITS:
            for name, guess in guesses.items():
                texts = {fact: guess(fact) for fact in self._asked[split]}
                rows = [self._judged(fact, text.split(";")) for fact, text in texts.items()]
                answer = tool.render({tool.ARGUMENT: next(iter(texts.values()))}) if name == "majority" else ""
                found.append(controls.summary(name, split, reward, rows, answer))
        return tuple(found)

    def protocols(self) -> tuple[str, ...]:
        return PROTOCOLS

    def score_file(self, protocol: str, path: Path) -> tuple[FileScore, ...]:
        """See `FileScored`. Every fact of a split counts, whatever the options' numbers of items."""
        known = next((name for name in PROTOCOLS if name == protocol), None)
        if known is None:
            raise UnknownName("protocol of the lawbench domain", protocol, PROTOCOLS)
        corpus = self._corpus
        if known != self._options.protocol:
            corpus = load(msgspec.structs.replace(self._options, protocol=known))
        return score_predictions(known, path, corpus.layout.facts, corpus.charges)

    def _judged(self, fact: Fact, named: tuple[str, ...] | list[str]) -> dict[str, float]:
        return judge_charges(self._options.protocol, named, fact.charges, self._corpus.charges).scores

    def _item(self, split: Split, fact: Fact) -> Item:
        text, most = " ".join(fact.text.split()), self._options.fact_chars
        return Item(fact.id, split, text if not most or len(text) <= most else text[:most] + CUT)

    def _fact(self, item: str) -> Fact:
        if item not in self._facts:
            raise UnknownName("item", item, self._facts)
        return self._facts[item]

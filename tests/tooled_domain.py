"""A domain of short texts with a label each, and three tools beside the answer's: neighbours, shortlist, classifier.

The tools are fitted by scikit-learn on the search split; on an item of that split, on the others. Texts are synthetic:
each label has words of its own among common ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from resia.domains.base import Answer, Item, Parameter, Reference, Score, TaskSpec, ToolSpec, Value
from resia.events import ControlScore, Split
from resia.events.ids import sha256

LABELS = ("arson", "bribery", "fraud", "theft")
_WORDS = {
    "arson": "fire burned petrol smoke flames house",
    "bribery": "official paid favour envelope contract gift",
    "fraud": "invoice forged account deceived transfer cheque",
    "theft": "stole wallet pocket shop phone took",
}
_COMMON = ["the", "defendant", "on", "that", "day", "then", "with", "a", "witness", "court", "said", "was"]
TOOLS = (
    ToolSpec("similar", "texts most like this one", {"text": "what to look for", "k": "how many"}),
    ToolSpec("retrieve", "labels of the texts most like this one", {"text": "", "k": ""}, "shortlist", "label"),
    ToolSpec("classify", "a TF-IDF classifier's label", {"text": "what to classify"}, "label", "label"),
)


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    search_items: int = 24
    validation_items: int = 12
    test_items: int = 4


class Charges:
    """Implements `resia.domains.base.Tooled`."""

    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        draw, counts = random.Random(0), msgspec.structs.asdict(sizes)
        self._gold: dict[str, str] = {}
        self._items: dict[str, tuple[Item, ...]] = {}
        for split in ("search", "validation", "test"):
            made = [self._item(split, n, draw) for n in range(counts[f"{split}_items"])]
            self._items[split] = tuple(made)
        self._texts = {item.id: item.prompt for items in self._items.values() for item in items}
        self.digest = sha256(msgspec.json.encode([sizes, self._texts]))
        self.spec = TaskSpec(
            name="charges",
            instruction="Name the charge.\nReply as label=<charge>.",
            tool="charge",
            parameters=(Parameter("label", LABELS, LABELS[0], "the charge"),),
            references=(Reference("first", {"label": LABELS[0]}, "the first charge"),),
            neutral_answers=({"label": "fraud"}, {"label": "theft"}),
            objective="mean",
            binary=True,
            tools=TOOLS,
        )

    def _item(self, split: Any, number: int, draw: random.Random) -> Item:
        label = LABELS[number % len(LABELS)]
        words = [*draw.sample(_WORDS[label].split(), 3), *draw.sample(_COMMON, 6)]
        draw.shuffle(words)
        self._gold[f"{split}-{number:02d}"] = label
        return Item(f"{split}-{number:02d}", split, " ".join(words))

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        label = request.get("label", LABELS[0])
        if set(request) - {"label"} or label not in LABELS:
            raise ValueError(f"label is {label!r}: give one of {', '.join(LABELS)}")
        return {"label": str(label)}

    def render(self, answer: Answer) -> str:
        return f"label={answer['label']}"

    def score(self, item: str, answer: Answer) -> Score:
        right = answer["label"] == self._gold[item]
        return Score(float(right), right, None if right else "wrong", "", {"right": float(right)})

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        return ()

    def call(self, tool: str, item: str, arguments: Mapping[str, object]) -> object:
        text = arguments.get("text", self._texts[item])
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r}: give a text")
        if tool == "classify":
            return str(self._classifier(item).predict([text])[0])
        k = arguments.get("k", 3)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}: give a number above 0")
        return self._nearest(tool, item, text, k)

    def _nearest(self, tool: str, item: str, text: str, k: int) -> list[str]:
        from sklearn.metrics.pairwise import linear_kernel

        vectorizer, known, matrix = self._index
        likeness = linear_kernel(vectorizer.transform([text]), matrix)[0]
        order = [known[n] for n in likeness.argsort()[::-1] if known[n] != item]
        if tool == "similar":
            return [self._texts[name] for name in order[:k]]
        return list(dict.fromkeys(self._gold[name] for name in order))[:k]

    @cached_property
    def _index(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        known = [item.id for item in self._items["search"]]
        vectorizer = TfidfVectorizer()
        return vectorizer, known, vectorizer.fit_transform([self._texts[name] for name in known])

    def _classifier(self, item: str) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        known = [i.id for i in self._items["search"] if i.id != item]
        made = make_pipeline(TfidfVectorizer(), LinearSVC(random_state=0))
        return made.fit([self._texts[name] for name in known], [self._gold[name] for name in known])

"""The tools that a harness may dispatch beside its own answer: a classifier, a shortlist, similar cases, the nearest.

Each takes `text`, by default the facts of the item in full, and gives JSON. `OFFERED` describes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from resia.domains.base import ToolSpec

from .facts import Fact
from .learned import Learned

SHOWN_CHARS = 120  # of a similar case
MOST = 20
SHORT, SIMILAR = 5, 3  # asked for where no count is given

_TEXT = {"text": "the facts to classify; left out: those of the item"}
_COUNT = {**_TEXT, "count": f"how many, 1 to {MOST}"}
OFFERED = (
    ToolSpec("svm", "the charge that a linear SVM over character TF-IDF gives", _TEXT, "label", "charge"),
    ToolSpec("nearest", "the charge of the most similar search case", _TEXT, "label", "charge"),
    ToolSpec("shortlist", "the likeliest charges by the SVM, best first", _COUNT, "shortlist", "charge"),
    ToolSpec("similar", "similar search cases, each with its charge, a line each", _COUNT, "text", ""),
)
_ARGUMENTS = {tool.name: tool.arguments for tool in OFFERED}


def call(learned: Learned, tool: str, fact: Fact, arguments: Mapping[str, object]) -> object:
    """What `tool` gives for an item's fact. Raises ValueError with one sentence for what it cannot take."""
    if tool not in _ARGUMENTS:
        raise ValueError(f"there is no tool '{tool}': call {', '.join(_ARGUMENTS)}")
    if unknown := [name for name in arguments if name not in _ARGUMENTS[tool]]:
        raise ValueError(f"argument '{unknown[0]}' of {tool} is unknown: give {', '.join(_ARGUMENTS[tool])}")
    text = arguments.get("text", fact.text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"argument 'text' of {tool} is {text!r:.80}: give the facts as text")
    return _ANSWERS[tool](learned, fact, text, _count(tool, arguments))


def _count(tool: str, arguments: Mapping[str, object]) -> int:
    count = arguments.get("count", SIMILAR if tool == "similar" else SHORT)
    if type(count) is not int or not 1 <= count <= MOST:
        raise ValueError(f"argument 'count' of {tool} is {count!r:.80}: give a whole number from 1 to {MOST}")
    return count


def _similar(learned: Learned, fact: Fact, text: str, count: int) -> str:
    cases = learned.nearest(fact, text, count)
    return "\n".join(
        f"{';'.join(case.fact.charges)}: {' '.join(case.fact.text.split())[:SHOWN_CHARS]}" for case in cases
    )


_ANSWERS: Mapping[str, Callable[[Learned, Fact, str, int], object]] = {
    "svm": lambda learned, fact, text, _: learned.ranked(fact, text, 1)[0][0],
    "nearest": lambda learned, fact, text, _: ";".join(learned.nearest(fact, text, 1)[0].fact.charges),
    "shortlist": lambda learned, fact, text, count: [name for name, _ in learned.ranked(fact, text, count)],
    "similar": _similar,
}

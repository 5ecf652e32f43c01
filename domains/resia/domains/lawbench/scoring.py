"""Scores of one answer: the benchmark's own, the same without its flaws, exact sets, and one label.

An answer is judged as text (`judge_text`: a file of predictions) or as the charges it names (`judge_charges`: a
rollout). Both end in a `Verdict`. Formulas: docs/lawbench.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

from .charges import Charges, NotListed

Protocol = Literal["official", "set-exact", "single"]
PROTOCOLS: tuple[Protocol, ...] = ("official", "set-exact", "single")
# What the loop optimises under each protocol. The benchmark's own F1 stands beside it and is not optimised.
REWARD: Mapping[Protocol, str] = {"official": "corrected", "set-exact": "exact", "single": "accuracy"}
OPEN, CLOSE = "[罪名]", "<eoa>"
EMPTY, TRUNCATED, UNKNOWN_LABEL, SEVERAL = "empty", "truncated", "unknown_label", "several_labels"


class Verdict(NamedTuple):
    """Scores by name, each in [0, 1], and how the answer is invalid, "" where it is not."""

    scores: dict[str, float]
    invalid: str = ""
    detail: str = ""


def f1(predicted: Collection[str], gold: Collection[str]) -> float:
    """2 |P & G| / (|P| + |G|) of two sets; 0 where both are empty."""
    total = len(predicted) + len(gold)
    return 2 * len(set(predicted) & set(gold)) / total if total else 0.0


def official_set(text: str, listed: Collection[str]) -> frozenset[str]:
    """What the benchmark takes a text to predict: every name of its list that is a substring of it, as it stands."""
    return frozenset(name for name in listed if name in text)


def answer_part(text: str) -> tuple[str, bool]:
    """What stands between the last [罪名] and the <eoa> after it, and whether it was closed; all of a text without."""
    _, mark, after = text.rpartition(OPEN)
    part, closed, _ = after.partition(CLOSE)
    return part, bool(closed) or not mark


def judge_text(protocol: Protocol, text: str, gold: Collection[str], charges: Charges) -> Verdict:
    """One prediction of a file against its gold charges."""
    return _JUDGES[protocol](text, gold, charges)


def judge_charges(protocol: Protocol, predicted: Collection[str], gold: Collection[str], charges: Charges) -> Verdict:
    """One parsed answer, every name of it on the list."""
    if protocol == "single":
        return Verdict({"accuracy": float(set(predicted) == set(gold))})
    exact = float(set(predicted) == set(gold))
    scores = {"exact": exact, "corrected": f1(predicted, gold)}
    if protocol == "official":
        text = f"{OPEN}{';'.join(predicted)}{CLOSE}"
        return Verdict({**scores, "official": f1(official_set(text, charges.official), gold)})
    return Verdict(scores)


def _judge_official(text: str, gold: Collection[str], charges: Charges) -> Verdict:
    """The published score takes any text; a text that is cut off or names nothing is counted, and scored as it is."""
    listed = official_set(text, charges.official)
    part, closed = answer_part(text)
    found = charges.found(part)
    scores = {
        "official": f1(listed, gold),
        "abstention_rate": float(not listed),
        "corrected": f1(found, gold),
        "exact": float(set(found) == set(gold)),
    }
    if not text.strip():
        return Verdict(scores, EMPTY, "a blank text")
    if not closed:
        return Verdict(scores, TRUNCATED, f"{OPEN} without {CLOSE}")
    return Verdict(scores) if found else Verdict(scores, UNKNOWN_LABEL, f"no charge in {part.strip()[:80]!r}")


def _judge_sets(text: str, gold: Collection[str], charges: Charges) -> Verdict:
    part, closed = answer_part(text)
    none = {"exact": 0.0, "corrected": 0.0}
    if not closed:
        return Verdict(none, TRUNCATED, f"{OPEN} without {CLOSE}")
    try:
        named = charges.several(part)
    except NotListed as cause:
        return Verdict(none, UNKNOWN_LABEL, str(cause))
    return judge_charges("set-exact", named, gold, charges) if named else Verdict(none, EMPTY, "a blank text")


def _judge_label(text: str, gold: Collection[str], charges: Charges) -> Verdict:
    part, closed = answer_part(text)
    none = {"accuracy": 0.0}
    if not closed:
        return Verdict(none, TRUNCATED, f"{OPEN} without {CLOSE}")
    if not part.strip():
        return Verdict(none, EMPTY, "a blank text")
    try:
        named = charges.several(part)
    except NotListed as cause:
        return Verdict(none, UNKNOWN_LABEL, str(cause))
    if len(named) != 1:
        return Verdict(none, SEVERAL if named else EMPTY, f"{len(named)} charges where one is asked for")
    return judge_charges("single", named, gold, charges)


_JUDGES: Mapping[Protocol, Callable[[str, Collection[str], Charges], Verdict]] = {
    "official": _judge_official,
    "set-exact": _judge_sets,
    "single": _judge_label,
}

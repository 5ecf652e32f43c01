"""Facts with their charges, wherever they come from: the one value that sources make and splits divide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from resia.events import Split
from resia.events.errors import UsageError

from .charges import plain

SPLITS: tuple[Split, ...] = ("search", "validation", "test")


class Fact(NamedTuple):
    """The facts of one case. `id` names file and record; `charges` are canonical names, sorted; `split` is where its
    source puts it, None where it is still to be drawn."""

    id: str
    text: str
    charges: tuple[str, ...]
    split: Split | None = None


class Merged(NamedTuple):
    """Facts no two of which have the same text, and how many records fell together or were left out for it."""

    facts: tuple[Fact, ...]
    repeated: int
    contradictory: int


def check_text(facts: Iterable[Fact]) -> None:
    """UsageError for a fact whose text or charges no file of UTF-8 could hold, as JSON can: half a character."""
    for fact in facts:
        for text in (fact.text, *fact.charges):
            try:
                text.encode()
            except UnicodeEncodeError as cause:
                half = f"\\u{ord(text[cause.start]):04x}"
                raise UsageError(f"fact {fact.id} holds half a character, {half} (a lone surrogate): mend it") from None


def merged(facts: Iterable[Fact]) -> Merged:
    """One fact a text, the first of its copies. A text whose copies name different charges is left out whole.

    Copies that a source puts into several splits go to the last of them: nothing of the test is searched.
    """
    copies: dict[str, list[Fact]] = {}
    for fact in facts:
        copies.setdefault(plain(fact.text), []).append(fact)
    agreed = [held for held in copies.values() if len({fact.charges for fact in held}) == 1]
    lost = sum(map(len, copies.values())) - sum(map(len, agreed))
    kept = tuple(held[0]._replace(split=_last(held)) for held in agreed)
    return Merged(kept, sum(map(len, agreed)) - len(agreed), lost)


def _last(copies: Iterable[Fact]) -> Split | None:
    given = [SPLITS.index(fact.split) for fact in copies if fact.split is not None]
    return SPLITS[max(given)] if given else None


def digest(facts: Iterable[Fact]) -> str:
    """SHA-256 over every field of every fact, in order."""
    state = hashlib.sha256()
    for fact in facts:
        for part in (fact.id, fact.text, ";".join(fact.charges), fact.split or ""):
            data = part.encode()
            state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()

"""Names of charges: how a written name is recognised, and the list that the benchmark's own scorer knows.

A closed list of names, sets of them as one line of text, and names found in running text. No case is in here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from resia.events.errors import UnknownName

SEPARATOR = ";"
CRIME = "罪"
# Charges that are right in task 3-3 and that the benchmark's scorer does not look for: it has 189 of the 202 names.
UNLISTED = frozenset(
    {
        "利用影响力受贿",
        "爆炸",
        "窃取、收买、非法提供信用卡信息",
        "窝藏、转移、收购、销售赃物",
        "聚众冲击国家机关",
        "走私",
        "过失以危险方法危害公共安全",
        "过失投放危险物质",
        "过失损坏广播电视设施、公用电信设施",
        "非法制造、买卖、运输、储存危险物质",
        "非法收购、运输、出售珍贵、濒危野生动物、珍贵、濒危野生动物制品",
        "非法收购、运输盗伐、滥伐的林木",
        "非法进行节育手术",
    }
)
_AROUND = "[]【】「」『』《》<>()\"'“”‘’.。,、:!"
_BETWEEN = re.compile(r"[;\n]")


class NotListed(ValueError):
    """A name that is on no list; the sentence has it and the nearest names."""


def plain(text: str) -> str:
    """`text` with full-width letters and marks as half-width ones (NFKC) and without any white space."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def written(name: str) -> str:
    """A name as data give it, made canonical: plain, without the brackets of the CAIL list and without a final 罪."""
    bare = plain(name).replace("[", "").replace("]", "").strip(_AROUND)
    return bare.removesuffix(CRIME) or bare


class Charges:
    """The closed list: names in canonical form, sorted."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(set(names)))
        self.official = tuple(name for name in self.names if name not in UNLISTED)
        self._rank = {name: number for number, name in enumerate(self.names)}
        # The longest name first, so that a name inside another is not found where the other stands.
        longest = sorted(self.names, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def name(self, text: str) -> str | None:
        """The one name that `text` is, whatever its width, spaces, brackets and final 罪; None for no name."""
        bare = written(text)
        found = (bare, bare.replace(",", "、"))
        return next((name for name in found if name in self._rank), None)

    def several(self, text: str) -> tuple[str, ...]:
        """The set of names that `text` lists, in the order of the list; () for a blank text.

        Names stand apart by `;` or a new line. A part that is no name may be names joined by a comma.
        Raises NotListed for the first part that is neither.
        """
        parts = [part for part in _BETWEEN.split(unicodedata.normalize("NFKC", text)) if plain(part).strip(_AROUND)]
        return self.ordered(name for part in parts for name in self._part(part))

    def _part(self, part: str) -> list[str]:
        whole = self.name(part)
        if whole is not None:
            return [whole]
        names = [self.name(piece) for piece in re.split("[,、]", part) if piece.strip()]
        known = [name for name in names if name is not None]
        if len(known) == len(names) > 1:
            return known
        raise NotListed(str(UnknownName("charge", part.strip()[:80], self.names)))

    def found(self, text: str) -> tuple[str, ...]:
        """Every name that stands in running text, none inside another, in the order of the list."""
        return self.ordered(self._pattern.findall(plain(text)))

    def ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        """A set of known names as it is written: each once, in the order of the list."""
        return tuple(sorted(set(names), key=self._rank.__getitem__))

"""Which shapes are tested and which are timed, and the score over them.

`full` is the public benchmark's and is meant for a GPU. `small` has the same seven laws and masks at an eighth of each
N, for a processor; its microseconds compare with no published number. `smoke` is for a first look, in seconds.

The items of a run have suites of their own, `SIZE/SPLIT/NUMBER`: one shape that is timed, and two smaller ones that are
tested as well. No N of one split is in another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

from resia.events import Split
from resia.events.errors import UnknownName

from .operator import Case, Law

REWARD_US = 1500.0
LAWS: tuple[Law, ...] = ("normal", "cauchy")
_TESTED = (
    (32, 1, 128),
    (64, 2, 256),
    (128, 1, 768),
    (256, 1, 128),
    (768, 2, 128),
    (1024, 1, 384),
    (1024, 1, 768),
)
_TIMED = (
    Case(256, 2, 128),
    Case(768, 1, 128, "cauchy"),
    Case(256, 2, 384, "normal", masked=True),
    Case(512, 1, 128),
    Case(1024, 1, 128, "cauchy"),
    Case(768, 1, 384, "normal", masked=True),
    Case(1024, 1, 384),
)
SMALLER = 8


def _every(shapes: tuple[tuple[int, int, int], ...]) -> tuple[Case, ...]:
    """Each shape with and without a mask, under both laws."""
    return tuple(Case(*shape, law, masked) for shape in shapes for masked in (False, True) for law in LAWS)


def smaller(case: Case) -> Case:
    """An eighth of N, all else as it was."""
    return Case(case.n // SMALLER, case.batch, case.channels, case.law, case.masked)


class Suite(NamedTuple):
    """What a kernel must be right on, and what it is timed on."""

    name: str
    tested: tuple[Case, ...]
    timed: tuple[Case, ...]


FULL = Suite("full", _every(_TESTED), _TIMED)
SMALL = Suite("small", _every(((16, 1, 128), (17, 2, 256), (24, 1, 384))), tuple(map(smaller, _TIMED)))
SMOKE = Suite("smoke", (Case(12, 1, 32), Case(9, 2, 32, "cauchy", masked=True)), (Case(16, 1, 64),))
SUITES = {suite.name: suite for suite in (FULL, SMALL, SMOKE)}


# Residues of N by split: no shape of the search is ever seen in validation or test.
RESIDUES: dict[Split, int] = {"search": 0, "validation": 2, "test": 5}


class Size(NamedTuple):
    """How large the shapes of a run's items are. `step` is what a split's residue of N is a multiple of."""

    timed: tuple[int, ...]
    channels: tuple[int, int]
    tested: int
    step: int = 1


SIZES: dict[str, Size] = {
    "smoke": Size((8, 16, 24), (32, 64), 8),
    "small": Size((32, 64, 96), (128, 256), 16),
    "full": Size((256, 512, 768, 1024), (128, 384), 32, step=16),
}
_ITEM = re.compile(r"(smoke|small|full)/(search|validation|test)/(\d{1,3})")


def item_suite(size: str, split: Split, index: int) -> Suite:
    """The suite of item `index` of a split: N, channels, mask, law and batch take turns."""
    chosen, more = SIZES[size], RESIDUES[split] * SIZES[size].step
    law, masked, channels = LAWS[index // 4 % 2], bool(index // 2 % 2), chosen.channels[index % 2]
    timed = Case(chosen.timed[index % len(chosen.timed)] + more, 1 + index // 8 % 2, channels, law, masked)
    least = chosen.tested + more
    tested = (Case(least, 1, channels), Case(least, 2, chosen.channels[0], "cauchy", masked=True))
    return Suite(f"{size}/{split}/{index:02d}", tested, (timed,))


def suite(name: str) -> Suite:
    """The suite called `name`. Raises UnknownName."""
    if found := _ITEM.fullmatch(name):
        return item_suite(found[1], cast(Split, found[2]), int(found[3]))
    if name not in SUITES:
        raise UnknownName("suite of cases", name, SUITES)
    return SUITES[name]


def geometric_mean(case_us: Mapping[str, float]) -> float:
    """The score in microseconds: the geometric mean over the cases, so that each weighs the same."""
    return math.exp(math.fsum(math.log(us) for us in case_us.values()) / len(case_us))


def reward(geomean_us: float) -> float:
    """1500 / us, as it is published."""
    return REWARD_US / geomean_us

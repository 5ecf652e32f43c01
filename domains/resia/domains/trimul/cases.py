"""Which shapes are tested and which are timed, and the score over them.

`full` is the public benchmark's and is meant for a GPU. `small` has the same seven laws and masks at an eighth of each
N, for a processor; its microseconds compare with no published number. `smoke` is for a first look, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

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


def suite(name: str) -> Suite:
    """The suite called `name`. Raises UnknownName."""
    if name not in SUITES:
        raise UnknownName("suite of cases", name, SUITES)
    return SUITES[name]


def geometric_mean(case_us: Mapping[str, float]) -> float:
    """The score in microseconds: the geometric mean over the cases, so that each weighs the same."""
    return math.exp(math.fsum(math.log(us) for us in case_us.values()) / len(case_us))


def reward(geomean_us: float) -> float:
    """1500 / us, as it is published."""
    return REWARD_US / geomean_us

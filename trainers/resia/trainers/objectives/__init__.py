"""The objectives that are built, by algorithm name. In: batch, settings. Out: rows with advantages, token losses.

One module an algorithm; importing this loads numpy and no torch. `FEASIBLE` is what a decider may ask for.
"""

from __future__ import annotations

from resia.events.errors import UnknownName
from resia.events.settings import Algorithm

from .base import Loss, Objective, Selection
from .best_of_n import BestOfN
from .grpo import Grpo

OBJECTIVES: dict[Algorithm, Objective] = {"best_of_n": BestOfN(), "grpo": Grpo()}
FEASIBLE: tuple[Algorithm, ...] = tuple(OBJECTIVES)


def objective_of(algorithm: Algorithm) -> Objective:
    """The objective called `algorithm`; raises UnknownName with the nearest that is built."""
    if algorithm not in OBJECTIVES:
        raise UnknownName("training algorithm", algorithm, FEASIBLE)
    return OBJECTIVES[algorithm]


__all__ = ["FEASIBLE", "OBJECTIVES", "Loss", "Objective", "Selection", "objective_of"]

"""The six objectives, by algorithm name. In: batch, settings. Out: rows with advantages, losses of micro-batches.

One module an algorithm; importing this loads numpy and no torch. `FEASIBLE` is what a decider may ask for.
"""

from __future__ import annotations

from resia.events.errors import UnknownName
from resia.events.settings import Algorithm

from .base import Loss, Objective, Selection, Tokens
from .best_of_n import BestOfN
from .dpo import Dpo
from .entropic import Entropic
from .grpo import Grpo
from .ppo_gae import PpoGae
from .reinforce_kl import ReinforceKl

OBJECTIVES: dict[Algorithm, Objective] = {
    "ppo_gae": PpoGae(),
    "grpo": Grpo(),
    "entropic": Entropic(),
    "reinforce_kl": ReinforceKl(),
    "best_of_n": BestOfN(),
    "dpo": Dpo(),
}
FEASIBLE: tuple[Algorithm, ...] = tuple(OBJECTIVES)


def objective_of(algorithm: Algorithm) -> Objective:
    """The objective called `algorithm`; raises UnknownName with the nearest that is built."""
    if algorithm not in OBJECTIVES:
        raise UnknownName("training algorithm", algorithm, FEASIBLE)
    return OBJECTIVES[algorithm]


__all__ = ["FEASIBLE", "OBJECTIVES", "Loss", "Objective", "Selection", "Tokens", "objective_of"]

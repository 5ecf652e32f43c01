"""Random search over a tool's valid answers: the control that knows nothing and has the run's own budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import form
from .base import Parameter, Value


def random_search(
    parameters: Sequence[Parameter],
    mean_reward: Callable[[Mapping[str, Value]], float],
    items: int,
    budget: int,
    seed: int,
) -> dict[str, Value]:
    """Best by `mean_reward` of uniformly drawn answers, as many as `budget` scorings pay for at `items` each.

    Drawn without replacement, which only makes the control stronger; a budget below two answers buys the first draw
    unseen. The earlier draw wins a tie. The whole grid of choices is made, so it must be small.
    """
    answers = form.grid(parameters)
    paid = min(budget // max(items, 1), len(answers))
    order = np.random.default_rng([seed]).permutation(len(answers))[: max(paid, 1)]
    drawn = [answers[index] for index in order]
    return max(drawn, key=mean_reward) if paid > 1 else drawn[0]

"""An interval for the mean of paired differences over seeds x items.

Runs of different seeds are measured on the same items, so the cells of such a table are not independent draws: an item
that is easy for one arm is so under every seed. Both sides are therefore resampled, seeds and items each with
replacement, as if each were drawn anew (the pigeonhole bootstrap: Owen, The Annals of Applied Statistics 1(2), 2007).
Its intervals are too wide rather than too narrow. One seed alone leaves a bootstrap over items.
"""

from __future__ import annotations

import numpy as np

from .gate import RESAMPLES, Floats, Interval


def crossed(values_S_I: Floats, tail: float, seed: int) -> Interval:
    """Percentile interval of the mean with `tail` outside on either side; at least one seed and one item."""
    seeds, items = values_S_I.shape
    rng = np.random.default_rng([seed, 2])
    weights_R_S = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    weights_R_I = rng.multinomial(items, np.full(items, 1 / items), RESAMPLES) / items
    means_R = ((weights_R_S @ values_S_I) * weights_R_I).sum(1)
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Interval(float(low), float(high))

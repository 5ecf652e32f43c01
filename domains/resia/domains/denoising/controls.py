"""What no learning reaches: fixed answers that a sound score must not reward, and the search's own answer.

Fixed controls are matrices made of the training counts alone; random search is made of the tool's configurations and
chosen on search items only. Knows nothing of models or budgets beyond the number of scorings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resia.events import ControlScore, Split

from .metrics import Floats, rescaled

SHRINK = 1e-3


def _gene_means(train_CG: Floats) -> Floats:
    """The pooled profile in every cell, at the cell's library size."""
    profile = np.broadcast_to(train_CG.mean(0), train_CG.shape)
    return rescaled(profile, train_CG.sum(1))


FIXED: Mapping[str, Callable[[Floats], Floats]] = {
    "all-zero": np.zeros_like,
    "shrunk": lambda train_CG: np.asarray(train_CG * np.float32(SHRINK)),
    "gene-means": _gene_means,
    "undenoised": lambda train_CG: train_CG,
}


def summary(
    name: str, split: Split, rows: Sequence[Mapping[str, float]], rewards: Sequence[float], answer: str = ""
) -> ControlScore:
    """Means over a split's items of the rewards and of every metric."""
    metrics = {key: round(float(np.mean([row[key] for row in rows])), 6) for key in rows[0]}
    return ControlScore(name, split, round(float(np.mean(rewards)), 6), len(rows), metrics, answer)

"""Problems: random cells of a split's own pool at some depth, each with its molecules split into train and test.

Pools are disjoint, so no cell of the search is ever seen in validation or test. Depth and number of cells rotate over
a square of nine settings and are in the prompt, because the best configuration depends on both. Knows nothing of the
tool's arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resia.domains.base import Item
from resia.events import Split
from resia.events.errors import UsageError

from .data import Counts, Integers
from .magic import Magic
from .metrics import Floats, Halves, Judge, split_molecules

SPLITS: tuple[Split, ...] = ("search", "validation", "test")
DEPTHS = (1.0, 0.3, 0.1)  # share of the molecules kept before the split
POOL_SHARES = (0.3, 0.6, 0.9)  # share of the pool's cells in an item
TRAIN_SHARE = 0.9
MIN_POOL = 20  # cells
MIN_HELD_OUT = 30  # molecules expected in a test half: with fewer the score is noise, and there may be none at all


class Problem(NamedTuple):
    """An item and what it is made of: `cells` are rows of the counts, `seed` draws its molecules."""

    item: Item
    cells: Integers
    depth: float
    seed: tuple[int, ...]


class Bench(NamedTuple):
    """A problem laid out: training counts (cells, genes), what denoises them and what judges the answer."""

    train: Floats
    magic: Magic
    judge: Judge


def pools(counts: Counts, seed: int) -> dict[Split, Integers]:
    """Disjoint thirds of the cells with 2 counts or more, shuffled by the seed. Raises UsageError for too few cells
    or genes."""
    total_C = np.diff(np.concatenate(([0], np.cumsum(counts.data)))[counts.indptr])
    usable = np.flatnonzero(total_C >= 2)
    if len(usable) < MIN_POOL * len(SPLITS):
        raise UsageError(
            f"the counts leave {len(usable)} cells with 2 molecules or more in the kept genes: "
            f"give at least {MIN_POOL * len(SPLITS)} cells, or lower min_cells_per_gene"
        )
    if len(counts.genes) < 2:
        raise UsageError(
            f"the counts leave {len(counts.genes)} gene in {len(usable)} cells, and of one gene every cell has the same"
            " profile: give counts of more genes, or lower min_cells_per_gene"
        )
    shuffled = np.random.default_rng([seed]).permutation(usable)
    return dict(zip(SPLITS, np.array_split(shuffled, len(SPLITS)), strict=True))


def check_depth(problem: Problem, counts: Counts) -> None:
    """Raises UsageError when too few molecules are expected in the item's test half."""
    molecules = int(sum(counts.data[counts.indptr[row] : counts.indptr[row + 1]].sum() for row in problem.cells))
    expected = molecules * problem.depth * (1.0 - TRAIN_SHARE)
    if expected < MIN_HELD_OUT:
        raise UsageError(
            f"item {problem.item.id} ({problem.item.prompt}) would hold out about {expected:.0f} molecules of"
            f" {molecules}: give counts that leave {MIN_HELD_OUT}, or lower min_cells_per_gene"
        )


def problems(split: Split, pool: Integers, count: int, seed: int) -> tuple[Problem, ...]:
    """`count` problems of one split; the nine settings of depth and size come round once in nine."""
    made = []
    for index in range(count):
        depth = DEPTHS[index % len(DEPTHS)]
        share = POOL_SHARES[(index + index // len(DEPTHS)) % len(POOL_SHARES)]
        key = (seed, SPLITS.index(split) + 1, index)
        cells = np.random.default_rng([*key, 0]).choice(pool, round(share * len(pool)), replace=False)
        item = Item(f"{split}-{index:02d}", split, f"cells={len(cells)} depth={depth:g}")
        made.append(Problem(item, np.sort(cells), depth, (*key, 1)))
    return tuple(made)


def whole(counts: Counts, seed: int) -> Problem:
    """All cells at full depth: the published recipe, of no split and of no run."""
    item = Item("whole", "search", f"cells={counts.cells} depth=1")
    return Problem(item, np.arange(counts.cells), 1.0, (seed, 0))


def lay_out(problem: Problem, counts: Counts) -> Bench:
    """The halves, and what denoises and judges. Raises UsageError as `halves_of`."""
    halves = halves_of(problem, counts)
    magic = Magic(halves.train, held_out=1.0 - TRAIN_SHARE)
    return Bench(halves.train, magic, Judge(halves.train, halves.test))


def halves_of(problem: Problem, counts: Counts) -> Halves:
    """Thin and split. Raises UsageError when the counts are too few to hold any molecule out."""
    rng = np.random.default_rng(list(problem.seed))
    full = counts.dense(problem.cells)
    thinned = rng.binomial(full.astype(np.int64), problem.depth).astype(full.dtype) if problem.depth < 1.0 else full
    halves = split_molecules(thinned, TRAIN_SHARE, rng)
    if len(halves.train) < 2 or not halves.test.any():
        raise UsageError(f"item {problem.item.id} has too few molecules to hold any out: give deeper counts")
    return halves

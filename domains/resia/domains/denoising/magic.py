"""MAGIC on dense counts of one item: a cell graph, its diffusion, and what may follow it.

Markov affinity-based graph imputation (van Dijk et al., Cell 2018) with the adaptive alpha-decay kernel, in both
orders of square root and library normalisation, then the analytic log correction, rescaling and rounding. Exact
linear algebra on small matrices and no random numbers, so equal inputs give equal outputs; values keep the precision
of the counts. Knows nothing of held-out counts, items or scores.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .metrics import PER_CELL, Floats, rescaled

Doubles = NDArray[np.float64]
Order = Literal["rev", "std"]

COMPONENTS = 100  # principal components of the cell graph
NEIGHBOURS_PER_KNN = 3  # the graph keeps 3 knn neighbours of a cell
KERNEL_FLOOR = 1e-4  # kernel values below are dropped

_STEP = 0.4
_MEANS = np.expm1(np.linspace(0.0, np.log1p(PER_CELL), 512))
_NODES = np.exp(np.arange(-24.0, 4.2, _STEP))  # quadrature nodes of `log_mean`, uniform in their logarithm


class Config(NamedTuple):
    """How to denoise. `knn` >= 1 sets the kernel's width, `t` >= 1 the steps of diffusion; order 'rev' takes the square
    root before the library normalisation, 'std' after; `log`, `scale` and `round` switch the later stages on."""

    knn: int
    t: int
    order: Order
    log: bool
    scale: bool
    round: bool


class Geometry(NamedTuple):
    """Cells in one order: normalised values (cells, genes), the sizes divided by (cells,), and each cell's others from
    near to far (cells, cells - 1) with their distances."""

    values: Floats
    sizes: Floats
    neighbours: NDArray[np.intp]
    distances: Doubles


def geometry(counts_CG: Floats, order: Order) -> Geometry:
    """Normalise and measure Euclidean distances over the first 100 principal components (fewer for fewer cells)."""
    root = np.sqrt(counts_CG)
    size_C = root.sum(1) if order == "rev" else counts_CG.sum(1)
    divisor_C = np.where(size_C > 0, size_C, 1)
    values = root / (divisor_C if order == "rev" else np.sqrt(divisor_C))[:, None]
    scores = _principal_scores(values)
    square_C = (scores**2).sum(1)
    distances = np.sqrt(np.maximum(square_C[:, None] + square_C[None, :] - 2.0 * scores @ scores.T, 0.0))
    np.fill_diagonal(distances, -1.0)  # a cell sorts first among its own neighbours, whatever rounding does
    nearest = np.argsort(distances, axis=1, kind="stable")[:, 1:]
    return Geometry(values, size_C, nearest, np.take_along_axis(distances, nearest, axis=1))


def _principal_scores(values_CG: Floats) -> Doubles:
    """Coordinates on the principal axes, from the eigenvectors of the cells' Gram matrix (cells << genes)."""
    centred = values_CG.astype(np.float64)
    centred -= centred.mean(0)
    eigenvalues, eigenvectors = np.linalg.eigh(centred @ centred.T)
    kept = eigenvectors[:, ::-1][:, :COMPONENTS]
    return np.asarray(kept * np.sqrt(np.maximum(eigenvalues[::-1][:COMPONENTS], 0.0)))


def operator(shape: Geometry, knn: int) -> Doubles:
    """Row-stochastic diffusion operator (cells, cells).

    Kernel exp(-d / sigma) to at most 3 knn neighbours, sigma the distance to the knn-th; then the mean of the kernel
    and its transpose, each row divided by its sum.
    """
    cells = len(shape.sizes)
    kernel: Doubles = np.eye(cells)
    if cells > 1:
        width_C = shape.distances[:, min(knn, cells - 1) - 1]
        near = slice(0, NEIGHBOURS_PER_KNN * knn)
        weights = np.exp(-shape.distances[:, near] / np.maximum(width_C, np.finfo(np.float64).tiny)[:, None])
        weights[weights < KERNEL_FLOOR] = 0.0
        np.put_along_axis(kernel, shape.neighbours[:, near], weights, axis=1)
    kernel = 0.5 * (kernel + kernel.T)
    return np.asarray(kernel / kernel.sum(1, keepdims=True))


def log_mean(mean: Doubles, per_count: Doubles) -> Doubles:
    """E[log1p(c X)] for X ~ Poisson(mean / c), c = `per_count` > 0; the arguments broadcast.

    log(1 + y) = integral over s > 0 of exp(-s) (1 - exp(-y s)) / s, so the expectation needs only the Poisson's Laplace
    transform; trapezoid in log s, whose error decays exponentially with the step.
    """
    c, rate = per_count[..., None], (mean / per_count)[..., None]
    return np.asarray((-np.expm1(rate * np.expm1(-c * _NODES)) * np.exp(-_NODES)).sum(-1) * _STEP)


class Magic:
    """MAGIC over one item's training counts (cells, genes). Geometry and the correction's table are computed once."""

    def __init__(self, counts_CG: Floats, held_out: float) -> None:
        """`held_out`: the share of molecules that the test half holds, in (0, 1); sets the log correction's depth."""
        self._counts_CG = counts_CG
        self._library_C = counts_CG.sum(1, dtype=np.float64)
        self._held_out = held_out
        self._geometry: dict[Order, Geometry] = {}
        self._table: Floats | None = None

    def denoise(self, config: Config) -> Floats:
        """Expected counts >= 0, (cells, genes); whole numbers with `round`.

        Without `scale` a cell keeps the size that squaring the diffused roots leaves it.
        """
        if config.order not in self._geometry:
            self._geometry[config.order] = geometry(self._counts_CG, config.order)
        shape = self._geometry[config.order]
        power = np.linalg.matrix_power(operator(shape, config.knn), config.t)
        answer: Floats = np.asarray(power.astype(shape.values.dtype) @ shape.values)
        np.square(answer, out=answer)
        answer *= shape.sizes[:, None]
        if config.log:
            answer = self.log_corrected(answer)
        if config.scale:
            answer = rescaled(answer, self._library_C)
        return np.rint(answer, out=answer) if config.round else answer

    def log_corrected(self, means_CG: Floats) -> Floats:
        """Replace each mean m per 10,000 by expm1(E[log1p(c Poisson(m / c))]), keeping the unit of `means_CG`.

        c = 10,000 / the test library expected from the training library. The squared error of log values is least at
        their mean, which is below the log of the mean.
        """
        if self._table is None:
            self._table = self._corrections().astype(means_CG.dtype)
        cells, points = self._table.shape
        position = rescaled(means_CG, PER_CELL)
        np.log1p(position, out=position)
        position *= (points - 1) / float(np.log1p(PER_CELL))
        left = np.minimum(position.astype(np.int32), points - 2)
        position -= left
        left += (np.arange(cells, dtype=np.int32) * points)[:, None]
        low = self._table.take(left)
        left += 1
        high: Floats = np.asarray(self._table.take(left))
        high -= low
        high *= position
        high += low
        high *= (means_CG.sum(1) / PER_CELL)[:, None]
        return high

    def _corrections(self) -> Doubles:
        """Corrected means per 10,000, a row for each cell, at the means `_MEANS` (uniform in log1p)."""
        test_library_C = self._library_C * self._held_out / (1.0 - self._held_out)
        per_count_C = PER_CELL / np.maximum(test_library_C, 1.0)
        return np.asarray(np.expm1(log_mean(_MEANS[None, :], per_count_C[:, None])))

"""A small matrix of counts for tests and examples, where denoising helps: no biology, no file."""

from __future__ import annotations

import numpy as np

from .data import Counts

CELLS, GENES, PROGRAMS = 240, 400, 3
MOLECULES = 3000  # mean per cell
SKEW = 2.0  # standard deviation of the logarithm of a gene's share: most genes are rare, as in real cells
CONTRAST = 0.8  # standard deviation of the logarithm of a program's change to a gene
MIXING = 0.1  # Dirichlet weight: most cells follow one program
DISPERSION = 8.0  # gamma shape of each entry's rate: negative binomial counts


def synthetic_counts(seed: int) -> Counts:
    """240 cells x 400 genes, negative binomial around mixtures of 3 gene programs; equal seeds give equal counts."""
    rng = np.random.default_rng(seed)
    programs = rng.lognormal(0.0, SKEW, size=GENES) * rng.lognormal(0.0, CONTRAST, size=(PROGRAMS, GENES))
    programs /= programs.sum(1, keepdims=True)
    mixture = rng.dirichlet(np.full(PROGRAMS, MIXING), size=CELLS)
    library = MOLECULES * rng.lognormal(-0.045, 0.3, size=(CELLS, 1))
    rate = mixture @ programs * library
    matrix = rng.poisson(rate * rng.gamma(DISPERSION, 1.0 / DISPERSION, size=rate.shape))
    cells, columns = np.nonzero(matrix)
    offsets = np.searchsorted(cells, np.arange(CELLS + 1))
    return Counts(matrix[cells, columns], columns, offsets, tuple(f"gene{i}" for i in range(GENES)))

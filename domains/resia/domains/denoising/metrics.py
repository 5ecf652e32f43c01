"""Molecular cross-validation and the scores over it: published, and audited against the tricks that pass it.

Metrics of Batson et al. (2019) as the Open Problems denoising task uses them: log-normalised mean squared error and
Poisson loss, each relative to no denoising (0) and to a perfect answer (1). Pure functions of matrices (cells, genes)
that keep the precision of what they are given. Knows nothing of MAGIC, items or the tool.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

PER_CELL = 10_000.0
OFFSET = 1e-6
GATE = 0.97  # least published Poisson norm
SLACK = 1e-6  # single precision's error in the Poisson norm of the undenoised matrix, which is 0
SAME = 1e-12  # relative difference of two losses below which they are one
LONG = 1e6  # from which a number is written with an exponent
EMPTY = 1e-30  # a cell that sums to no more than this is all zero


class Halves(msgspec.Struct, frozen=True):
    """Train and test counts of the same molecules, both (cells, genes), and which rows and columns they were."""

    train: Floats
    test: Floats
    cells: NDArray[np.intp]
    genes: NDArray[np.intp]


class Verdict(msgspec.Struct, frozen=True):
    """Every score of one answer. Norms are 0 for the undenoised matrix and 1 for a perfect one.

    `published` and `audited` in [0, 1] are mse_norm, or 0 when their own check fails; `gate` and `fault` say in words
    which check that was ('' when none). The Poisson norms have no lower bound: `poisson_norm` of the rescaled answer,
    as the audit takes it; `poisson_norm_plain` and `poisson_norm_published` of the answer as it stands, with the
    library's own order of arguments and with the published one.
    """

    mse_norm: float
    poisson_norm: float
    poisson_norm_plain: float
    poisson_norm_published: float
    published: float
    gate: str
    audited: float
    fault: str


def split_molecules(counts_CG: Floats, train_share: float, rng: np.random.Generator) -> Halves:
    """Molecular cross-validation: train ~ Binomial(count, train_share) entry by entry, test the rest.

    Cells with fewer than 2 counts and genes in no cell go first; then genes without a training count, in both halves.
    """
    cells = np.flatnonzero(counts_CG.sum(1) >= 2)
    kept = counts_CG[cells]
    columns = np.flatnonzero(kept.any(0))
    kept = kept[:, columns]
    train = rng.binomial(kept.astype(np.int64), train_share).astype(counts_CG.dtype)
    genes = train.any(0)
    test = np.ascontiguousarray((kept - train)[:, genes])
    return Halves(np.ascontiguousarray(train[:, genes]), test, cells, columns[genes])


def rescaled(counts_CG: Floats, library_C: Floats | float) -> Floats:
    """Each cell multiplied so that it sums to its library size; an all-zero cell stays zero."""
    total_C = counts_CG.sum(1, dtype=np.float64)
    factor_C = np.where(total_C > EMPTY, library_C / np.maximum(total_C, EMPTY), 0.0)
    return np.asarray(counts_CG * factor_C[:, None].astype(counts_CG.dtype))


def log_normalised(counts_CG: Floats) -> Floats:
    """log1p of each cell scaled to 10,000."""
    scaled = rescaled(counts_CG, PER_CELL)
    return np.asarray(np.log1p(scaled, out=scaled))


def mse(answer_CG: Floats, test_CG: Floats) -> float:
    """Mean over ALL entries of the squared difference of log-normalised values."""
    return _mean_square(log_normalised(answer_CG), log_normalised(test_CG))


def poisson(predicted_CG: Floats, test_CG: Floats) -> float:
    """Poisson loss mean(D - T ln(D + 1e-6)) of predictions D at the depth of the test half."""
    return float(np.mean(predicted_CG - test_CG * np.log(predicted_CG + OFFSET)))


def poisson_published(predicted_CG: Floats, test_CG: Floats) -> float:
    """The published loss mean(T - D ln(T + 1e-6)): the library's own function with its arguments swapped."""
    return poisson(test_CG, predicted_CG)


class Judge:
    """Scores answers for one pair of halves, (cells, genes) both with counts. Its constants are computed once.

    Public constants: the losses of the undenoised (`none_...`) and the perfect answer (`perfect_...`), the test half
    itself: as it stands for the plain and the published Poisson, rescaled like every answer for the audited one.
    """

    def __init__(self, train_CG: Floats, test_CG: Floats) -> None:
        self._shape = train_CG.shape
        self._library_C = train_CG.sum(1, dtype=np.float64)
        self._depth = float(test_CG.sum(dtype=np.float64) / self._library_C.sum())
        self._log_test_CG = log_normalised(test_CG)
        self._where = np.nonzero(test_CG)
        self._seen = test_CG[self._where].astype(np.float64)
        self.none_mse = _mean_square(log_normalised(train_CG), self._log_test_CG)
        self.none_poisson = self._poisson(train_CG)
        self.perfect_poisson = self._poisson(rescaled(test_CG, self._library_C))
        self.perfect_plain = self._poisson(test_CG)
        self.none_published = self._poisson_published(train_CG)
        self.perfect_published = self._poisson_published(test_CG)

    def verdict(self, answer_CG: Floats) -> Verdict:
        """Both scores of an answer (cells, genes); a malformed one gets 0 for everything and the fault's name."""
        if fault := self._shapeless(answer_CG):
            return nothing(fault)
        mse_norm = _norm(self.none_mse, _mean_square(log_normalised(answer_CG), self._log_test_CG), 0.0)
        mse_norm = min(1.0, max(0.0, mse_norm))
        swapped = self._poisson_published(answer_CG)
        published_norm = _norm(self.none_published, swapped, self.perfect_published)
        plain_norm = _norm(self.none_poisson, self._poisson(answer_CG), self.perfect_plain)
        gate = ""
        if published_norm < GATE:
            gate = f"published Poisson norm {_short(published_norm)} is below {GATE}"
        elif float(answer_CG.max()) > self._library_C.sum():
            gate = "a value exceeds the sum of the training counts"
        loss = self._poisson(rescaled(answer_CG, self._library_C))
        norm = _norm(self.none_poisson, loss, self.perfect_poisson)
        fault = self._empty(answer_CG)
        if not fault and norm < -SLACK:
            fault = f"Poisson norm {norm:.3f}: worse than no denoising"
        published, audited = (0.0 if gate else mse_norm), (0.0 if fault else mse_norm)
        return Verdict(mse_norm, norm, plain_norm, published_norm, published, gate, audited, fault)

    def malformed(self, answer_CG: Floats) -> str:
        """What the audit finds wrong with an answer without a look at the test half; empty where nothing is."""
        return self._shapeless(answer_CG) or self._empty(answer_CG)

    def _shapeless(self, answer_CG: Floats) -> str:
        if answer_CG.shape != self._shape:
            return f"shape {answer_CG.shape} instead of {self._shape}"
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(answer_CG.sum(dtype=np.float64))
        if not np.isfinite(total):
            return "non-finite values"
        return "negative values" if float(answer_CG.min()) < 0.0 else ""

    def _empty(self, answer_CG: Floats) -> str:
        """Cells that are all zero. One without a training count may be: to its library of 0 any answer comes down."""
        empty = int((answer_CG[self._library_C > 0].sum(1, dtype=np.float64) <= EMPTY).sum())
        return f"all-zero cells: {empty} of {len(answer_CG)}" if empty else ""

    def _poisson(self, answer_CG: Floats) -> float:
        """`poisson` of the answer brought to test depth; only entries with test counts need their logarithm."""
        log_seen = np.log(answer_CG[self._where].astype(np.float64) * self._depth + OFFSET)
        total = float(answer_CG.sum(dtype=np.float64)) * self._depth - float(self._seen @ log_seen)
        return total / answer_CG.size

    def _poisson_published(self, answer_CG: Floats) -> float:
        """`poisson_published` of the answer brought to test depth; without test counts the logarithm is ln(1e-6)."""
        empty = float(np.log(OFFSET))
        seen = answer_CG[self._where].astype(np.float64) @ (np.log(self._seen + OFFSET) - empty)
        weighted = (float(seen) + empty * float(answer_CG.sum(dtype=np.float64))) * self._depth
        return (float(self._seen.sum()) - weighted) / answer_CG.size


def _short(norm: float) -> str:
    return f"{norm:.3f}" if abs(norm) < LONG else f"{norm:.3g}"


def nothing(fault: str) -> Verdict:
    """Of an answer that is no matrix of its item."""
    return Verdict(0.0, 0.0, 0.0, 0.0, 0.0, fault, 0.0, fault)


def _norm(none: float, loss: float, perfect: float) -> float:
    """How far `loss` is from no denoising (0) to a perfect answer (1); 0 where there is no way to go."""
    return 0.0 if math.isclose(none, perfect, rel_tol=SAME) else (none - loss) / (none - perfect)


def _mean_square(left_CG: Floats, right_CG: Floats) -> float:
    difference = left_CG - right_CG
    return float(np.mean(np.square(difference, out=difference)))

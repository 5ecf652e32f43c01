"""MAGIC against its formulas, the log correction against the Poisson sum, and known scores on real counts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from resia.domains.denoising.data import load_counts
from resia.domains.denoising.magic import Config, Magic, geometry, log_mean, operator
from resia.domains.denoising.metrics import Judge, rescaled, split_molecules
from resia.domains.denoising.synthetic import synthetic_counts

REAL = Path(__file__).parents[2] / "shared" / "data" / "scrna" / "celltypist_sample_559x9810.npz"
COUNTS = np.random.default_rng(0).poisson(3.0, size=(12, 30)).astype(np.float64) + 0.0


def naive_magic(counts, knn, t, order):
    """The definition with loops: no principal components, since 12 cells need none."""
    root = np.sqrt(counts)
    size = root.sum(1) if order == "rev" else counts.sum(1)
    values = root / size[:, None] if order == "rev" else np.sqrt(counts / size[:, None])
    cells = len(counts)
    kernel = np.zeros((cells, cells))
    for i in range(cells):
        distance = [math.dist(values[i], values[j]) for j in range(cells)]
        near = sorted((j for j in range(cells) if j != i), key=lambda j: distance[j])
        kernel[i, i] = 1.0
        for j in near[: 3 * knn]:
            weight = math.exp(-distance[j] / distance[near[knn - 1]])
            kernel[i, j] = weight if weight >= 1e-4 else 0.0
    kernel = (kernel + kernel.T) / 2
    step = kernel / kernel.sum(1, keepdims=True)
    for _ in range(t):
        values = step @ values
    return values**2 * size[:, None]


@pytest.mark.parametrize("order", ["rev", "std"])
@pytest.mark.parametrize(("knn", "t"), [(1, 1), (2, 3), (3, 2)])
def test_equals_the_definition(order, knn, t):
    got = Magic(COUNTS, 0.1).denoise(Config(knn, t, order, False, False, False))
    assert got == pytest.approx(naive_magic(COUNTS, knn, t, order), rel=1e-9)


@pytest.mark.parametrize("knn", [1, 5, 50])
def test_the_operator_is_row_stochastic(knn):
    step = operator(geometry(COUNTS, "std"), knn)
    assert step.sum(1) == pytest.approx(np.ones(len(COUNTS)))
    assert (step >= 0).all()


def test_equal_cells_and_single_cells_are_no_trouble():
    twins = np.repeat(COUNTS[:1], 4, axis=0)
    config = Config(2, 3, "rev", False, True, False)
    assert Magic(twins, 0.1).denoise(config) == pytest.approx(twins, rel=1e-6)
    assert Magic(COUNTS[:1], 0.1).denoise(config) == pytest.approx(COUNTS[:1], rel=1e-9)


@pytest.mark.parametrize(("mean", "per_count"), [(0.01, 25.0), (1.0, 25.0), (100.0, 3.0), (5000.0, 25.0), (3.0, 900.0)])
def test_the_log_mean_equals_the_poisson_sum(mean, per_count):
    rate = mean / per_count
    terms = [
        math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) * math.log1p(per_count * k) for k in range(1, 2000)
    ]
    got = log_mean(np.array([mean]), np.array([per_count]))[0]
    assert got == pytest.approx(math.fsum(terms), rel=1e-7)


def test_the_log_correction_is_the_log_mean_per_10_000():
    magic = Magic(COUNTS, 0.1)
    plain = magic.denoise(Config(2, 2, "rev", False, True, False))
    got = magic.denoise(Config(2, 2, "rev", True, False, False))
    per_count = 10_000 / (COUNTS.sum(1, keepdims=True) / 9)
    corrected = np.expm1(log_mean(rescaled(plain, 10_000.0), per_count))
    assert got / got.sum(1, keepdims=True) == pytest.approx(corrected / corrected.sum(1, keepdims=True), rel=2e-4)
    assert (corrected < rescaled(plain, 10_000.0)).all()


def test_scale_and_round_do_what_they_say():
    magic = Magic(COUNTS, 0.1)
    scaled = magic.denoise(Config(3, 2, "rev", True, True, False))
    assert scaled.sum(1) == pytest.approx(COUNTS.sum(1))
    assert magic.denoise(Config(3, 2, "rev", True, True, True)).tolist() == np.rint(scaled).tolist()


def test_the_same_configuration_twice_gives_the_same_bytes():
    counts = synthetic_counts(2).dense(np.arange(60))
    config = Config(5, 3, "std", True, True, False)
    magic = Magic(counts, 0.1)
    first = magic.denoise(config)
    magic.denoise(Config(2, 8, "rev", False, True, True))
    assert magic.denoise(config).tobytes() == first.tobytes()
    assert Magic(counts.copy(), 0.1).denoise(config).tobytes() == first.tobytes()


@pytest.mark.skipif(not REAL.exists(), reason="the real counts are not beside this checkout (../shared/data/scrna)")
def test_known_scores_on_real_counts():
    counts = load_counts(REAL)
    halves = split_molecules(counts.dense(np.arange(counts.cells)), 0.9, np.random.default_rng(0))
    judge, magic = Judge(halves.train, halves.test), Magic(halves.train, 0.1)
    assert halves.train.shape == (559, 9810)

    reversed_magic = magic.denoise(Config(5, 3, "rev", False, False, False))
    verdict = judge.verdict(reversed_magic)
    assert verdict.audited == verdict.published == pytest.approx(0.226, abs=0.005)
    plain = judge.verdict(magic.denoise(Config(5, 3, "std", False, False, False)))
    assert plain.audited == pytest.approx(0.222, abs=0.005)
    assert plain.poisson_norm_plain == pytest.approx(0.80, abs=0.01)
    assert plain.published == 0.0

    often = counts.genes_in(30)
    kept = split_molecules(often.dense(np.arange(often.cells)), 0.9, np.random.default_rng(0))
    assert kept.train.shape == (559, 7221)
    answer = Magic(kept.train, 0.1).denoise(Config(5, 3, "rev", False, False, False))
    assert Judge(kept.train, kept.test).verdict(answer).audited == pytest.approx(0.222, abs=0.005)

    zeros = judge.verdict(np.zeros_like(halves.train))
    assert zeros.published == pytest.approx(0.203, abs=0.01)
    assert zeros.audited == 0.0

    # One depth for all cells gives about 0.37; each cell's own depth, as the tool has it, 0.40.
    means = rescaled(reversed_magic, 10_000.0)
    grid = np.linspace(0.0, math.log1p(10_000.0), 512)
    per_count = np.array([10_000.0 / halves.test.sum(1).mean()])
    pooled = np.interp(np.log1p(means), grid, np.expm1(log_mean(np.expm1(grid), per_count)))
    assert judge.verdict(pooled.astype(np.float32)).audited == pytest.approx(0.37, abs=0.01)
    shrunk = judge.verdict(pooled * 1e-3)
    assert shrunk.published == pytest.approx(0.367, abs=0.01)
    assert shrunk.audited == pytest.approx(judge.verdict(pooled).audited, abs=1e-5)
    corrected = judge.verdict(magic.denoise(Config(5, 3, "rev", True, True, False)))
    assert corrected.audited == pytest.approx(0.404, abs=0.01)
    assert corrected.published == 0.0

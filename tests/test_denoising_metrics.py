"""Metrics against loops written from the formulas, and the answers that pass the published gate but not the audit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resia.domains.denoising.items import Bench, lay_out, pools, problems
from resia.domains.denoising.magic import Config
from resia.domains.denoising.metrics import (
    Judge,
    log_normalised,
    mse,
    poisson,
    poisson_published,
    rescaled,
    split_molecules,
)
from resia.domains.denoising.synthetic import synthetic_counts

TRAIN = np.array([[6.0, 3.0, 0.0, 1.0], [0.0, 2.0, 5.0, 1.0], [4.0, 4.0, 4.0, 0.0]])
TEST = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
ANSWER = np.array([[5.0, 2.0, 1.0, 2.0], [1.0, 2.0, 4.0, 1.0], [4.0, 3.0, 4.0, 1.0]])


def logs(matrix):
    return [[math.log1p(10_000 * x / sum(row)) if sum(row) else 0.0 for x in row] for row in matrix.tolist()]


def oracle_mse(answer, test):
    left, right = ([x for row in logs(matrix) for x in row] for matrix in (answer, test))
    return math.fsum((a - b) ** 2 for a, b in zip(left, right, strict=True)) / len(left)


def oracle_poisson(answer, test, train, swapped=False):
    depth = test.sum() / train.sum()
    terms = []
    for d, t in zip((answer * depth).ravel().tolist(), test.ravel().tolist(), strict=True):
        terms.append(t - d * math.log(t + 1e-6) if swapped else d - t * math.log(d + 1e-6))
    return math.fsum(terms) / len(terms)


def oracle_scores(answer, train, test):
    """(mse_norm, right-order norm of the rescaled answer, of the answer as it stands, published norm) as defined."""
    library = train.sum(1, keepdims=True)

    def to_library(m):
        return m / m.sum(1, keepdims=True) * library

    mse_norm = 1 - oracle_mse(answer, test) / oracle_mse(train, test)
    right = [oracle_poisson(m, test, train) for m in (train, to_library(answer), to_library(test))]
    plain, swapped = (
        [oracle_poisson(m, test, train, bool(swapped)) for m in (train, answer, test)] for swapped in (0, 1)
    )
    return max(0.0, mse_norm), *((none - p) / (none - perfect) for none, p, perfect in (right, plain, swapped))


@pytest.fixture(scope="module")
def sparse() -> Bench:
    """A laid out synthetic item at the lowest depth, where most entries are zero as in real counts."""
    counts = synthetic_counts(0)
    made = problems("search", pools(counts, 0)["search"], 3, 0)
    return lay_out(made[2], counts)


def test_losses_equal_the_formulas():
    assert mse(ANSWER, TEST) == pytest.approx(oracle_mse(ANSWER, TEST), rel=1e-12)
    depth = TEST.sum() / TRAIN.sum()
    assert poisson(ANSWER * depth, TEST) == pytest.approx(oracle_poisson(ANSWER, TEST, TRAIN), rel=1e-12)
    assert poisson_published(ANSWER * depth, TEST) == pytest.approx(
        oracle_poisson(ANSWER, TEST, TRAIN, swapped=True), rel=1e-12
    )


def test_the_verdict_equals_the_formulas():
    verdict = Judge(TRAIN, TEST).verdict(ANSWER)
    expected = oracle_scores(ANSWER, TRAIN, TEST)
    got = (verdict.mse_norm, verdict.poisson_norm, verdict.poisson_norm_plain, verdict.poisson_norm_published)
    assert got == pytest.approx(expected, rel=1e-10)


def test_single_precision_agrees_with_double(sparse):
    answer = sparse.magic.denoise(Config(5, 3, "rev", True, True, False))
    halves = [np.asarray(m, dtype=np.float64) for m in (sparse.train, answer)]
    thin = np.random.default_rng(0).binomial(sparse.train.astype(int), 0.1)
    single = Judge(sparse.train, thin.astype(np.float32)).verdict(answer)
    double = Judge(halves[0], thin.astype(np.float64)).verdict(halves[1])
    assert single.mse_norm == pytest.approx(double.mse_norm, abs=2e-6)
    assert single.poisson_norm == pytest.approx(double.poisson_norm, abs=2e-6)


def test_norms_are_zero_for_no_denoising_and_one_for_the_test_half():
    judge = Judge(TRAIN, TEST)
    none, perfect = judge.verdict(TRAIN), judge.verdict(TEST)
    norms = [(v.mse_norm, v.poisson_norm, v.poisson_norm_plain, v.poisson_norm_published) for v in (none, perfect)]
    assert norms[0] == (0.0, 0.0, 0.0, 0.0)
    assert norms[1] == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert none.fault == perfect.fault == ""
    assert perfect.audited == 1.0


def test_a_norm_without_a_way_to_go_is_zero():
    """Of one gene every cell has the same profile, so no denoising is perfect already."""
    verdict = Judge(TRAIN[:, :1] + 1, np.ones((3, 1))).verdict(ANSWER[:, :1])
    assert (verdict.mse_norm, verdict.audited, verdict.poisson_norm) == (0.0, 0.0, 0.0)


def test_a_cell_without_a_training_count_may_be_all_zero():
    """It is as shallow as this when all of its molecules are held out; whatever is answered comes down to nothing."""
    train = np.vstack([TRAIN, np.zeros(4)])
    judge = Judge(train, np.vstack([TEST, [0.0, 2.0, 0.0, 0.0]]))
    none, filled = judge.verdict(train), judge.verdict(np.vstack([TRAIN, np.ones(4)]))
    assert none.fault == filled.fault == ""
    assert none.poisson_norm == filled.poisson_norm == pytest.approx(0.0, abs=1e-12)
    assert "all-zero cells: 1 of 4" in judge.verdict(np.vstack([np.zeros((1, 4)), train[1:]])).fault


def test_a_zero_row_stays_zero():
    matrix = np.array([[0.0, 0.0], [1.0, 3.0]])
    assert log_normalised(matrix)[0].tolist() == [0.0, 0.0]
    assert rescaled(matrix, np.array([7.0, 8.0])).tolist() == [[0.0, 0.0], [2.0, 6.0]]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (np.where(ANSWER == 2.0, -1.0, ANSWER), "negative"),
        (np.where(ANSWER == 2.0, np.nan, ANSWER), "non-finite"),
        (np.where(ANSWER == 2.0, np.inf, ANSWER), "non-finite"),
        (np.full_like(ANSWER, 1e308), "non-finite"),
        (ANSWER[:, :3], "shape"),
        (np.vstack([ANSWER[:2], np.zeros(4)]), "all-zero cells: 1 of 3"),
    ],
)
def test_a_malformed_answer_is_invalid(answer, fault):
    verdict = Judge(TRAIN, TEST).verdict(answer)
    assert verdict.audited == 0.0
    assert fault in verdict.fault


def test_a_value_above_all_training_counts_fails_the_published_gate(sparse):
    answer = np.zeros_like(sparse.train)
    rare = int(np.argmin(sparse.train.sum(0)))
    answer[0, rare] = sparse.train.sum() * 2
    verdict = sparse.judge.verdict(answer)
    assert verdict.published == 0.0
    assert verdict.gate


def exploits(bench):
    """Answers worth nothing that the published gate lets through."""
    corrected = bench.magic.log_corrected(bench.train.copy())
    rounded = bench.magic.denoise(Config(5, 3, "rev", True, True, True))
    filled = np.where(rounded.sum(1, keepdims=True) > 0, rounded, bench.train)
    return {
        "all-zero": np.zeros_like(bench.train),
        "zeros put in, then shrunk": np.float32(1e-3) * filled,
        "log-corrected without denoising, then shrunk": np.float32(1e-3) * corrected,
    }


@pytest.mark.parametrize(
    "name", ["all-zero", "zeros put in, then shrunk", "log-corrected without denoising, then shrunk"]
)
def test_an_exploit_passes_the_published_gate_and_fails_the_audit(sparse, name):
    verdict = sparse.judge.verdict(exploits(sparse)[name])
    assert verdict.gate == ""
    assert verdict.published > 0.1
    assert verdict.fault != ""
    assert verdict.audited == 0.0


def test_shrinking_buys_the_published_gate_and_nothing_from_the_audit(sparse):
    answer = sparse.magic.denoise(Config(5, 3, "rev", False, True, False))
    plain, shrunk = sparse.judge.verdict(answer), sparse.judge.verdict(answer * np.float32(1e-3))
    assert (plain.gate != "", shrunk.gate) == (True, "")
    assert shrunk.audited == pytest.approx(plain.audited, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    answer=arrays(np.float64, (3, 4), elements=st.floats(0.01, 100.0)),
    factors=arrays(np.float64, (3, 1), elements=st.floats(1e-6, 1e6)),
)
def test_the_audit_ignores_a_positive_factor_on_any_cell(answer, factors):
    judge = Judge(TRAIN, TEST)
    plain, scaled = judge.verdict(answer), judge.verdict(answer * factors)
    assume(abs(plain.poisson_norm) > 1e-5)
    assert scaled.audited == pytest.approx(plain.audited, abs=1e-9)
    assert (scaled.fault == "") == (plain.fault == "")


@settings(deadline=None, max_examples=40)
@given(counts=arrays(np.float64, (6, 5), elements=st.integers(0, 30)), seed=st.integers(0, 2**32))
def test_the_split_keeps_every_molecule_of_the_kept_genes(counts, seed):
    halves = split_molecules(counts, 0.9, np.random.default_rng(seed))
    kept = counts[counts.sum(1) >= 2]
    assert halves.train.shape == halves.test.shape
    assert len(halves.train) == len(kept)
    assert (halves.train >= 0).all()
    assert (halves.test >= 0).all()
    assert (halves.train.sum(0) > 0).all()
    whole = {tuple(column) for column in kept.T}
    assert all(tuple(column) in whole for column in (halves.train + halves.test).T)


def test_the_split_holds_out_a_tenth():
    halves = split_molecules(np.full((50, 40), 20.0), 0.9, np.random.default_rng(3))
    # 40,000 molecules: the standard deviation of the share is 0.0015.
    assert halves.test.sum() / 40_000 == pytest.approx(0.1, abs=0.008)

"""Denoised matrices in files: every form, the numbers against plain numpy, and what is wrong with a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from resia.domains.denoising.data import save_counts
from resia.domains.denoising.program_tool import shipped
from resia.domains.denoising.synthetic import synthetic_counts
from resia.domains.registry import load_domain
from resia.events.errors import UnknownName, UsageError
from resia.runtime.cli import main

OPTIONS = {"synthetic": True, "search_items": 2, "validation_items": 1, "test_items": 1}
DOMAIN = load_domain("denoising", OPTIONS)
REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "scrna" / "celltypist_sample_559x9810.npz"
TRAIN = np.array([[4, 0, 6, 2], [0, 3, 1, 0], [5, 5, 0, 1]], dtype=float)
TEST = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 2, 0, 0]], dtype=float)
ANSWER = np.array([[4.0, 0.5, 5.0, 0.1], [0.1, 0.2, 1.0, 0.0], [0.1, 5.5, 0.1, 0.1]])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The files that the domain writes for others."""
    folder = tmp_path_factory.mktemp("given")
    DOMAIN.write_given(folder)
    return folder


@pytest.fixture
def magic():
    return _program("magic")


def _program(name):
    held = {}
    exec(shipped(name), held)  # our own text
    return held["denoise"]


def score(path, protocol="audited"):
    return DOMAIN.score_file(protocol, path)


def save_csv(path, values, genes, cells):
    rows = [["cell", *genes], *([c, *map(repr, map(float, r))] for c, r in zip(cells, values, strict=True))]
    path.write_text("\n".join(map(",".join, rows)))


def loss(found, expected, names):
    for name in names:
        assert found.scores[name] == pytest.approx(expected[name], rel=1e-9), name


def by_hand(answer, train=TRAIN, test=TEST):
    """Every number from the formulas, in plain numpy."""
    log = lambda m: np.log1p(m / m.sum(1, keepdims=True) * 1e4)  # noqa: E731
    depth = test.sum() / train.sum()
    right = lambda d: np.mean(d - test * np.log(d + 1e-6))  # noqa: E731
    swapped = lambda d: np.mean(test - d * np.log(test + 1e-6))  # noqa: E731
    library = lambda m: m / m.sum(1, keepdims=True) * train.sum(1, keepdims=True)  # noqa: E731
    mse, none = np.mean((log(answer) - log(test)) ** 2), np.mean((log(train) - log(test)) ** 2)
    audited = [right(library(m) * depth) for m in (train, answer, test)]
    published = [swapped(m * depth) for m in (train, answer, test)]
    return {
        "mse": mse,
        "mse_none": none,
        "mse_norm": max(0.0, (none - mse) / none),
        "audited_norm": (audited[0] - audited[1]) / (audited[0] - audited[2]),
        "poisson": right(answer * depth),
        "poisson_none": right(train * depth),
        "poisson_perfect": right(test * depth),
        "published_norm": (published[0] - published[1]) / (published[0] - published[2]),
        "swapped": published[1],
        "swapped_none": published[0],
        "swapped_perfect": published[2],
    }


@pytest.mark.parametrize("form", ["one file", "a folder", "tables"])
def test_halves_of_ones_own_score_what_the_formulas_say(tmp_path, form):
    parts = {"train": TRAIN, "test": TEST, "denoised": ANSWER}
    path = tmp_path
    if form == "one file":
        path = tmp_path / "mine.npz"
        np.savez(path, **parts)
    for name, values in parts.items():
        if form == "a folder":
            np.savez(tmp_path / f"{name}.npz", X=values)
        if form == "tables":
            save_csv(tmp_path / f"{name}.csv", values, "abcd", "123")
    expected = by_hand(ANSWER)
    (audited,), (published,) = (score(path, protocol) for protocol in ("audited", "published"))
    loss(audited, expected, ("mse", "mse_none", "mse_norm", "poisson", "poisson_none", "poisson_perfect"))
    assert audited.scores["poisson_norm"] == pytest.approx(expected["audited_norm"], rel=1e-9)
    assert published.scores["poisson_norm"] == pytest.approx(expected["published_norm"], rel=1e-9)
    for name in ("", "_none", "_perfect"):
        assert published.scores[f"poisson{name}"] == pytest.approx(expected[f"swapped{name}"], rel=1e-9)
    assert (audited.split, audited.denominator, audited.coverage) == ("given", 1, 1.0)
    assert expected["mse_norm"] > 0.0


def test_cells_and_genes_in_another_order_are_the_same_answer(tmp_path, given, magic):
    held = np.load(given / "search-00.npz")
    answer, draw = magic(held["X"], 0), np.random.default_rng(0)
    rows, columns = draw.permutation(len(answer)), draw.permutation(answer.shape[1])
    cells, genes = held["cells"], held["genes"]
    for folder in ("plain", "named", "table"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "plain" / "search-00.npz", X=answer)
    turned = answer[rows][:, columns]
    np.savez(tmp_path / "named" / "search-00.npz", X=turned, cells=cells[rows], genes=genes[columns])
    save_csv(tmp_path / "table" / "search-00.csv", turned, genes[columns], cells[rows])
    found = [score(tmp_path / folder) for folder in ("plain", "named", "table")]
    assert found[0] == found[1] == found[2]
    (one,) = found[0]
    assert (one.split, one.denominator, one.answered, one.invalid) == ("search", 2, 1, {"missing": 1})
    reference = DOMAIN.score("search-00", DOMAIN.spec.references[0].answer).reward
    assert one.scores["audited"] == pytest.approx(reference / 2, abs=2e-5)
    assert score(tmp_path / "plain" / "search-00.npz") == found[0]


def test_a_folder_of_answers_is_scored_by_split_and_strangers_are_counted(tmp_path, given):
    for name in ("validation-00", "test-00", "whole"):
        np.savez(tmp_path / f"{name}.npz", X=np.load(given / f"{name}.npz")["X"] * (name != "test-00"))
    np.savez(tmp_path / "notes.npz", X=np.ones((2, 2)))
    (tmp_path / "README.txt").write_text("mine")
    validation, test, whole = score(tmp_path)
    assert (validation.split, test.split, whole.split) == ("validation", "test", "whole")
    assert validation.ignored == {"unknown_item": 1}
    assert validation.scores["audited"] == whole.scores["mse_norm"] == 0.0
    assert whole.scores["mse"] == whole.scores["mse_none"]
    assert list(test.invalid) == [f"all-zero cells: {(n := len(np.load(given / 'test-00.npz')['X']))} of {n}"]


def test_one_matrix_of_several_that_does_not_fit_is_counted_and_the_others_are_scored(tmp_path, given):
    whole = {name: np.load(given / f"{name}.npz")["X"] for name in ("search-00", "search-01", "validation-00")}
    np.savez(tmp_path / "search-00.npz", X=whole["search-00"])
    np.savez(tmp_path / "search-01.npz", X=whole["search-01"][1:])
    (tmp_path / "validation-00.npz").write_bytes(b"cut")
    search, validation = score(tmp_path)
    ((why, count),) = search.invalid.items()
    assert "search-01.npz' has" in why
    assert (count, search.answered, search.denominator, search.scores["audited"]) == (1, 1, 2, 0.0)
    assert search.scores["mse"] == search.scores["mse_none"]
    ((why, count),) = validation.invalid.items()
    assert "validation-00.npz' cannot be read" in why
    assert (count, validation.answered, validation.scores["audited"]) == (1, 0, 0.0)


def test_an_answer_that_this_machine_cannot_read_is_not_scored_as_wrong(tmp_path, given, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    np.savez(tmp_path / "search-00.npz", X=np.load(given / "search-00.npz")["X"])
    (tmp_path / "search-01.h5ad").write_bytes(b"whatever it holds")
    with pytest.raises(UsageError, match=r"search-01\.h5ad' is read by scanpy .*: install resia\[bio\]"):
        score(tmp_path)


def test_a_number_of_three_hundred_digits_is_written_with_an_exponent(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", train=TRAIN, test=TEST, denoised=ANSWER * 1e300)
    command = ["score", "denoising", "--predictions", str(tmp_path / "mine.npz"), "--set", "synthetic=true"]
    assert main([*command, "--protocol", "published"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 250


def test_two_files_for_one_matrix_are_refused(tmp_path, given):
    answer = np.load(given / "test-00.npz")
    np.savez(tmp_path / "test-00.npz", X=answer["X"])
    save_csv(tmp_path / "test-00.csv", answer["X"], answer["genes"], answer["cells"])
    with pytest.raises(UsageError, match=r"has test-00\.csv and test-00\.npz for one matrix: leave one of them"):
        score(tmp_path)


def test_a_sparse_matrix_too_large_for_any_memory_is_no_answer(tmp_path):
    sizes = {"indptr": np.array([0, 1, *[1] * 10**5]), "shape": np.array([10**5 + 1, 2**40])}
    np.savez(tmp_path / "test-00.npz", data=[1.0], indices=[0], genes=["a"], **sizes)
    with pytest.raises(UsageError, match=r"test-00\.npz' cannot be read"):
        score(tmp_path / "test-00.npz")


@pytest.mark.parametrize("place", [9, 2 * 10**9])
def test_a_sparse_matrix_with_values_outside_of_it_is_refused_before_it_is_laid_out(tmp_path, place):
    """scipy does not look, and writes beyond its own memory: the process would end, or go on with other numbers."""
    path = tmp_path / "test-00.npz"
    np.savez(path, data=np.ones(3), indices=[0, place, 1], indptr=[0, 1, 3], shape=[2, 4], genes=list("abcd"))
    with pytest.raises(UsageError, match=r"the sparse matrix of '.*test-00\.npz' is damaged \(indices must be < 4\)"):
        score(path)


def test_genes_that_share_a_name_are_known_by_their_place(tmp_path):
    counts = synthetic_counts(0)
    save_counts(counts._replace(genes=("twice", "twice", *counts.genes[2:])), tmp_path / "c.npz")
    domain = load_domain("denoising", {**OPTIONS, "synthetic": False, "path": str(tmp_path / "c.npz")})
    (tmp_path / "given").mkdir()
    domain.write_given(tmp_path / "given")
    assert set(np.load(tmp_path / "given" / "test-00.npz").files) == {"X", "cells"}
    (found,) = domain.score_file("audited", tmp_path / "given" / "test-00.npz")
    assert found.invalid == {}


def test_sparse_answers_are_read_and_what_is_given_is_no_more_than_the_training_half(tmp_path, given):
    from scipy import sparse

    held = np.load(given / "test-00.npz")
    rows = sparse.csr_matrix(held["X"] * 0.5)
    arrays = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "shape": rows.shape}
    np.savez(tmp_path / "test-00.npz", **arrays, genes=held["genes"], cells=held["cells"])
    (found,) = score(tmp_path / "test-00.npz")
    assert found.invalid == {}
    assert found.scores["mse"] == pytest.approx(found.scores["mse_none"])
    for form in ("csr", "csc"):  # without names, in the item's order
        sparse.save_npz(tmp_path / "test-00.npz", rows.asformat(form))
        assert score(tmp_path / "test-00.npz")[0].scores == found.scores
    sparse.save_npz(tmp_path / "test-00.npz", rows.tobsr())
    with pytest.raises(UsageError, match="a sparse matrix of the form bsr: give csr, csc or a dense X"):
        score(tmp_path / "test-00.npz")
    named = {name: held[name].astype("S") for name in ("genes", "cells")}
    np.savez(tmp_path / "test-00.npz", X=held["X"][:, ::-1] * 0.5, genes=named["genes"][::-1], cells=named["cells"])
    assert score(tmp_path / "test-00.npz")[0].scores == found.scores
    assert {path.stem for path in given.iterdir()} == {"search-00", "search-01", "validation-00", "test-00", "whole"}
    assert set(held.files) == {"X", "cells", "genes"}
    np.testing.assert_array_equal(held["X"], DOMAIN._held("test-00").train.values)


@pytest.mark.parametrize(
    ("change", "invalid"),
    [
        (lambda X: np.where(X.max() == X, np.nan, X), "non-finite values"),
        (lambda X: X - 1, "negative values"),
        (lambda X: np.vstack([X[:-1], 0 * X[:1]]), "all-zero cells: 1 of "),
    ],
)
def test_an_answer_that_is_none_is_counted_with_why(tmp_path, given, change, invalid):
    np.savez(tmp_path / "test-00.npz", X=change(np.load(given / "test-00.npz")["X"]))
    (found,) = score(tmp_path / "test-00.npz")
    ((why, count),) = found.invalid.items()
    assert why.startswith(invalid)
    assert (count, found.scores["audited"], found.answered) == (1, 0.0, 1)
    json.dumps(found.scores, allow_nan=False)


def npz(**arrays):
    return lambda path, given: np.savez(path, **{n: v(given) if callable(v) else v for n, v in arrays.items()})


def theirs(given, name="X"):
    return np.load(given / "test-00.npz")[name]


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        (
            "test-00.npz",
            npz(X=lambda g: theirs(g)[:-1]),
            r"has \d+ cells and the item \d+: give a matrix",
        ),
        ("test-00.npz", npz(X=lambda g: theirs(g)[:, :-1]), r"has \d+ genes and the item"),
        ("test-00.npz", npz(X=theirs, genes=lambda g: [f"x{n}" for n in theirs(g, "genes")]), "lacks gene 'gene"),
        ("test-00.npz", npz(X=theirs, cells=lambda g: ["a", *theirs(g, "cells")[1:]]), r"lacks cell '\d+': give the"),
        ("test-00.npz", npz(X=theirs, genes=["a"]), r"names 1 genes and has \d+: give each one name"),
        ("test-00.npz", npz(X=lambda g: theirs(g).astype(str)), "holds <U32 and no numbers"),
        ("test-00.npz", npz(Y=theirs), "holds no array X: its arrays are Y"),
        ("test-00.npz", npz(X=np.ones(3)), r"has the shape \(3,\): give cells in rows"),
        ("test-00.npz", lambda path, _: path.write_bytes(b"PK\x03\x04cut"), "damaged, cut off or of another format"),
        ("test-00.npz", lambda path, _: path.write_bytes(b""), "damaged, cut off or of another format"),
        ("test-00.csv", lambda path, _: path.write_text("cell,a,b\n1,2"), "row 2 of .* has 1 values for 2 genes"),
        ("test-00.csv", lambda path, _: path.write_text("cell,a\n1,many"), "row 2 of .* holds no numbers"),
        ("test-00.csv", lambda path, _: path.write_text(""), "has no cells"),
        ("test-00.csv", lambda path, _: path.write_bytes(b"\xff\xfe\x00"), "damaged, cut off"),
        ("test-00.mtx", lambda path, _: path.write_text(""), "of no known form: give .npz, .h5ad, .csv or a folder"),
        ("test-99.npz", npz(X=np.ones((2, 2))), "answers no item: call a file after the one that it answers"),
        (
            "mine.npz",
            npz(train=TRAIN, test=TEST, denoised=ANSWER[:2]),
            "denoised' has 2 cells and the item 3",
        ),
        (
            "mine.npz",
            npz(train=TRAIN + 0.5, test=TEST, denoised=ANSWER),
            r"train' cannot be used: a count is fractional \(4.5\)",
        ),
        (
            "mine.npz",
            npz(train=TRAIN, test=-TEST, denoised=ANSWER),
            r"test' cannot be used: a count is negative \(-2\)",
        ),
        (
            "mine.npz",
            npz(train=TRAIN * np.nan, test=TEST, denoised=ANSWER),
            "train' cannot be used: a count is NaN or infinite",
        ),
        (
            "mine.npz",
            npz(train=TRAIN * 1e9, test=TEST, denoised=ANSWER),
            r"train' .*a count is 6e\+09, more than 16,777,",
        ),
        (
            "mine.npz",
            npz(train=TRAIN[:, :1], test=TRAIN[:, :1], denoised=TRAIN[:, :1]),
            "have one profile, so no answer",
        ),
        ("mine.npz", npz(train=TRAIN, test=TRAIN * 2, denoised=TRAIN), "have one profile, so no answer can do better"),
        (
            "mine.npz",
            npz(train=TRAIN, test=TEST, denoised=ANSWER, genes=["a"]),
            "names 1 genes and has 4: give each one",
        ),
        ("mine.npz", npz(train=5, test=TEST, denoised=ANSWER), r"has the shape \(\): give cells in rows"),
        ("mine.npz", npz(train=TRAIN[0], test=TEST, denoised=ANSWER), r"has the shape \(4,\): give cells in rows"),
        ("mine.npz", npz(train=TRAIN * 0, test=TEST, denoised=ANSWER), "leaves no cells with training counts"),
        ("mine.npz", npz(train=TRAIN, test=TEST * 0, denoised=ANSWER), "leaves no cells with test counts"),
    ],
)
def test_a_file_that_cannot_be_scored_is_one_sentence(tmp_path, given, name, write, sentence):
    write(tmp_path / name, given)
    with pytest.raises(UsageError, match=sentence) as caught:
        score(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_commands_write_what_is_given_and_score_what_comes_back(tmp_path, capsys, magic):
    sets = [f"--set={name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    assert main(["task", "items", "denoising", "--out", str(tmp_path / "given"), *sets, "--json"]) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in written] == ["search-00", "search-01", "validation-00", "test-00", "whole"]
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "whole.npz", X=magic(np.load(tmp_path / "given" / "whole.npz")["X"], 0))
    command = ["score", "denoising", "--predictions", str(tmp_path / "mine"), *sets]
    assert main([*command, "--protocol", "published", "--json"]) == 0
    (found,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert found["scores"]["mse_norm"] > 0.05
    assert next(iter(found["invalid"])).startswith("published Poisson norm")
    assert main(command) == 0
    assert "audited whole: audited 0." in capsys.readouterr().out
    assert main(["task", "items", "denoising", "--out", str(tmp_path / "given"), *sets]) == 2
    assert "is there already and not an empty folder: give another to --out" in capsys.readouterr().err
    assert main(["task", "items", "lawbench", "--out", str(tmp_path / "l"), "--set", "synthetic=true"]) == 2
    assert "domain 'lawbench' gives nothing but prompts" in capsys.readouterr().err
    assert main([*command, "--protocol", "public"]) == 2
    assert "did you mean published?" in capsys.readouterr().err
    with pytest.raises(UnknownName):
        score(tmp_path / "mine", "public")


@pytest.mark.skipif(not REAL.is_file(), reason="the celltypist sample is not in ../shared/data")
def test_the_known_scores_of_the_real_cells(tmp_path):
    """Measured constants: all zeros 0.203 with the gate passed, the reversed MAGIC 0.225 to 0.227."""
    domain = load_domain("denoising", {"path": str(REAL), "min_cells_per_gene": 1})
    train = domain._held("whole").train.values
    assert train.shape[0] == 559
    np.savez(tmp_path / "whole.npz", X=0 * train)
    (zeros,) = domain.score_file("published", tmp_path / "whole.npz")
    assert zeros.scores["published"] == pytest.approx(0.203, abs=0.005)
    assert zeros.scores["poisson_norm"] > 0.97
    np.savez(tmp_path / "whole.npz", X=_program("magic")(train, 0))
    (magic,) = domain.score_file("audited", tmp_path / "whole.npz")
    assert magic.scores["audited"] == pytest.approx(0.226, abs=0.003)

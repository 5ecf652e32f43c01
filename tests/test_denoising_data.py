"""Counts on disk: what is read back, what is refused with which sentence, and celltypist's table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from resia.domains.denoising.data import ARRAYS, Counts, convert_celltypist_csv, load_counts, save_counts
from resia.domains.denoising.synthetic import synthetic_counts
from resia.events.errors import UsageError

REAL = Path(__file__).parents[2] / "shared" / "data" / "scrna" / "celltypist_sample_559x9810.npz"


def arrays_of(**changed):
    """A valid 3 x 4 matrix [[1,0,2,0],[0,0,0,5],[3,0,0,0]] with some arrays replaced; None leaves one out."""
    valid = {
        "data": np.array([1, 2, 5, 3], dtype=np.uint16),
        "indices": np.array([0, 2, 3, 0], dtype=np.uint16),
        "indptr": np.array([0, 2, 3, 4], dtype=np.int32),
        "shape": np.array([3, 4], dtype=np.int32),
        "genes": np.array(["a", "b", "c", "d"]),
    }
    return {name: array for name, array in {**valid, **changed}.items() if array is not None}


def write(path, **changed):
    np.savez_compressed(path, **arrays_of(**changed))
    return path


def test_reads_what_was_written(tmp_path):
    counts = load_counts(write(tmp_path / "c.npz"))
    assert counts.dense(np.array([0, 1, 2])).tolist() == [[1, 0, 2, 0], [0, 0, 0, 5], [3, 0, 0, 0]]
    save_counts(counts, tmp_path / "again.npz")
    assert load_counts(tmp_path / "again.npz").digest() == counts.digest()


def test_the_digest_ignores_integer_width_and_stored_zeros(tmp_path):
    plain = load_counts(write(tmp_path / "a.npz"))
    wide = load_counts(write(tmp_path / "b.npz", data=np.array([1.0, 2.0, 5.0, 3.0]), indptr=np.array([0, 2, 3, 4])))
    zero = load_counts(
        write(
            tmp_path / "c.npz",
            data=np.array([1, 0, 2, 5, 3]),
            indices=np.array([0, 1, 2, 3, 0]),
            indptr=np.array([0, 3, 4, 5]),
        )
    )
    assert plain.digest() == wide.digest() == zero.digest()
    other = load_counts(write(tmp_path / "d.npz", data=np.array([1, 2, 5, 4])))
    assert other.digest() != plain.digest()


def test_genes_in_few_cells_are_dropped(tmp_path):
    counts = load_counts(write(tmp_path / "c.npz")).genes_in(2)
    assert counts.genes == ("a",)
    assert counts.dense(np.array([0, 1, 2])).tolist() == [[1], [0], [3]]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"data": np.array([1.0, np.nan, 5, 3])}, "NaN or infinite"),
        ({"data": np.array([1.0, -2, 5, 3])}, "negative"),
        ({"data": np.array([1.0, 2.5, 5, 3])}, "fractional"),
        ({"data": np.array([1.0, 2.0, 1e20, 3])}, r"a count is 1e\+20, more than 16,777,216"),
        ({"data": np.array([1, 2, 5])}, "indices has shape"),
        ({"indices": np.array([0, 2, 4, 0])}, "outside the 4 genes"),
        ({"indices": np.array([0, 2, -1, 0])}, "outside the 4 genes"),
        ({"indices": np.array([0.0, 2, 3, 0])}, "integers"),
        ({"indices": np.array([2, 2, 3, 0])}, "listed twice"),
        ({"indptr": np.array([0, 2, 4])}, "indptr has shape"),
        ({"indptr": np.array([0, 3, 2, 4])}, "indptr must rise"),
        ({"indptr": np.array([0, 2, 3, 5])}, "indptr must rise"),
        ({"indptr": np.array([0, 3, 2, 4], dtype=np.uint32)}, "indptr must rise"),
        ({"shape": np.array([0, 4])}, "number of cells"),
        ({"shape": np.array([3])}, "number of cells"),
        ({"genes": np.array(["a"])}, "genes has shape"),
        ({"genes": None}, "lacks the array 'genes'"),
        ({"genes": np.array(["a", "b", "c", None], dtype=object)}, "plain arrays"),
    ],
)
def test_bad_counts_are_refused_in_one_sentence(tmp_path, changed, sentence):
    path = write(tmp_path / "bad.npz", **changed)
    with pytest.raises(UsageError, match=sentence) as raised:
        load_counts(path)
    assert "bad.npz" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not an \.npz"):
        load_counts(path)


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        (b"PK\x01\x02-\x03-\x00\x00\x00\x08", b"PK\x01\x02-\x03-\x00\x00\x00\x63"),  # how a part is packed
        (b"'shape': (4,)", b"'shape': (4, "),  # the tokenizer of Python's own finds no end
    ],
)
def test_a_file_damaged_where_its_readers_have_other_errors_is_refused(tmp_path, whole, damaged):
    path = tmp_path / "x.npz"
    (np.savez_compressed if b"shape" not in whole else np.savez)(path, **arrays_of())
    held = path.read_bytes()
    assert whole in held
    path.write_bytes(held.replace(whole, damaged))
    with pytest.raises(UsageError, match=r"not an \.npz") as raised:
        load_counts(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.npz' does not exist"):
        load_counts(tmp_path / "gone.npz")


def as_csv(counts, noise=0.0):
    """celltypist's layout with one all-zero gene put first and values a little below the whole number."""
    lines = ["," + ",".join(["EMPTY", *counts.genes])]
    for cell in range(counts.cells):
        row = counts.dense(np.array([cell]))[0].astype(np.float64)
        values = np.where(row > 0, row - noise, 0.0)
        lines.append(f"cell-{cell},0.0," + ",".join(map(repr, values.tolist())))
    return "\n".join(lines).encode() + b"\n"


def test_the_converted_table_equals_the_counts(tmp_path):
    counts = synthetic_counts(4).genes_in(1)
    out = tmp_path / "out.npz"
    convert_celltypist_csv(io.BytesIO(as_csv(counts, noise=1e-5)), out)
    back = load_counts(out)
    assert back.genes == counts.genes
    assert back.digest() == counts.digest()
    with np.load(out) as archive:
        assert set(archive.files) == set(ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_table_on_disk_converts_to_the_same_bytes(tmp_path):
    table = as_csv(synthetic_counts(4))
    (tmp_path / "t.csv").write_bytes(table)
    convert_celltypist_csv(tmp_path / "t.csv", tmp_path / "a.npz")
    stream = io.BytesIO(table)
    convert_celltypist_csv(stream, tmp_path / "b.npz")
    assert not stream.closed
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.skipif(not REAL.exists(), reason="the real counts are not beside this checkout (../shared/data/scrna)")
def test_real_counts_survive_the_table(tmp_path):
    real = load_counts(REAL)
    end = real.indptr[100]
    some = Counts(real.data[:end], real.indices[:end], real.indptr[:101], real.genes).genes_in(1)
    convert_celltypist_csv(io.BytesIO(as_csv(some, noise=1e-5)), tmp_path / "out.npz")
    back = load_counts(tmp_path / "out.npz")
    assert (back.cells, back.genes, back.digest()) == (100, some.genes, some.digest())
    with np.load(tmp_path / "out.npz") as got, np.load(REAL) as expected:
        assert all(got[name].dtype.kind == expected[name].dtype.kind for name in ARRAYS)
        assert all(got[name].dtype == expected[name].dtype for name in ARRAYS if name != "genes")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"", "no cells"),
        (b",a,b\n", "no cells"),
        (b",a,b\nx,1\n", "row 1 of the counts table has 1 values for 2 genes"),
        (b",a,b\nx,1,2\ny,1,oops\n", "row 2 of the counts table holds no numbers"),
        (b",a,b\nx,1,0.5\n", "row 1 of the counts table cannot be used: a count is fractional"),
        (b",a,b\nx,1,-1\n", "negative"),
        (b",a,b\nx,1,nan\n", "NaN"),
    ],
)
def test_a_bad_table_is_refused_and_leaves_no_file(tmp_path, table, sentence):
    with pytest.raises(UsageError, match=sentence):
        convert_celltypist_csv(io.BytesIO(table), tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []

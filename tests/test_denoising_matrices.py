"""Counts of other formats: the same matrix from each of them, and what is refused with which sentence."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from resia.domains.denoising.data import Counts, save_counts
from resia.domains.denoising.domain import Denoising, DenoisingOptions
from resia.domains.denoising.matrices import read_counts
from resia.domains.denoising.matrix_files import read_matrix
from resia.domains.denoising.synthetic import synthetic_counts
from resia.events.errors import UsageError

ABSENT = "scanpy is not installed (the extra bio)"
needs_scanpy = pytest.mark.skipif(find_spec("scanpy") is None, reason=ABSENT)
COUNTS = synthetic_counts(3).genes_in(1)
MATRIX = COUNTS.dense(np.arange(COUNTS.cells))


@pytest.fixture(scope="module")
def anndata():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader's own imports say is not under test
        return pytest.importorskip("anndata", reason=ABSENT)


def h5ad(anndata, path: Path, matrix, **layers) -> Path:
    held = anndata.AnnData(matrix if hasattr(matrix, "tocsr") else np.asarray(matrix), layers=layers)
    held.var_names = COUNTS.genes[: held.shape[1]]
    held.write_h5ad(path)
    return path


def tenx(folder: Path, genes: int | None = None, cut: int | None = None) -> Path:
    """A 10x folder, genes in the rows of its matrix; `genes` names listed, the first `cut` bytes of the matrix."""
    folder.mkdir()
    cells, columns = np.nonzero(MATRIX)
    rows = [f"{g + 1} {c + 1} {int(MATRIX[c, g])}" for c, g in zip(cells, columns, strict=True)]
    head = ["%%MatrixMarket matrix coordinate integer general", f"{len(COUNTS.genes)} {COUNTS.cells} {len(rows)}"]
    names = COUNTS.genes[:genes]
    texts = {
        "matrix.mtx.gz": "\n".join([*head, *rows, ""]),
        "features.tsv.gz": "".join(f"id-{name}\t{name}\tGene Expression\n" for name in names),
        "barcodes.tsv.gz": "".join(f"cell-{n}\n" for n in range(COUNTS.cells)),
    }
    for name, text in texts.items():
        packed = gzip.compress(text.encode())
        (folder / name).write_bytes(packed[:cut] if name.startswith("matrix") else packed)
    return folder


@needs_scanpy
def test_every_format_gives_the_same_counts_and_the_same_items(anndata, tmp_path):
    save_counts(COUNTS, tmp_path / "c.npz")
    paths = [
        tmp_path / "c.npz",
        tenx(tmp_path / "tenx"),
        h5ad(anndata, tmp_path / "x.h5ad", MATRIX),
    ]
    assert {read_counts(str(path)).digest() for path in paths} == {COUNTS.digest()}
    layered = h5ad(anndata, tmp_path / "layers.h5ad", np.log1p(MATRIX), counts=MATRIX)
    assert read_counts(str(layered), "counts").digest() == COUNTS.digest()
    sizes = {"search_items": 1, "validation_items": 1, "test_items": 1}
    made = [Denoising(DenoisingOptions(path=str(path), **sizes)) for path in paths]
    made.append(Denoising(DenoisingOptions(path=str(layered), layer="counts", **sizes)))
    assert len({domain.digest for domain in made}) == 1


@needs_scanpy
@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.where(MATRIX > 3, np.nan, MATRIX), "NaN or infinite"),
        (-MATRIX, "negative"),
        (np.log1p(MATRIX), "fractional"),
        (MATRIX[:0], "shape is"),
    ],
)
def test_a_matrix_that_holds_no_counts_is_refused(anndata, tmp_path, matrix, sentence):
    path = h5ad(anndata, tmp_path / "bad.h5ad", matrix)
    with pytest.raises(UsageError, match=sentence) as raised:
        read_counts(str(path))
    assert "bad.h5ad" in str(raised.value)
    assert "\n" not in str(raised.value)


@needs_scanpy
def test_an_unknown_layer_is_named_with_those_there(anndata, tmp_path):
    path = h5ad(anndata, tmp_path / "l.h5ad", np.log1p(MATRIX), counts=MATRIX)
    with pytest.raises(UsageError, match="has no layer 'raw': the option layer may name counts"):
        read_counts(str(path), "raw")
    with pytest.raises(
        UsageError, match=r"fractional .*, or name where the file has them with the option layer: counts"
    ):
        read_counts(str(path))


@needs_scanpy
@pytest.mark.filterwarnings("error:.*names are not unique")
def test_counts_in_the_raw_slot_are_those_of_all_its_genes(anndata, tmp_path):
    whole = anndata.AnnData(MATRIX)
    whole.var_names = COUNTS.genes
    held = whole[:, :9].copy()  # as a file is saved after its variable genes were chosen
    held.X, held.raw = np.log1p(held.X), whole
    held.obs_names = ["cell"] * COUNTS.cells
    held.write_h5ad(tmp_path / "raw.h5ad")
    assert read_counts(str(tmp_path / "raw.h5ad"), "raw").digest() == COUNTS.digest()
    with pytest.raises(UsageError, match=r"fractional .* with the option layer: raw"):
        read_counts(str(tmp_path / "raw.h5ad"))
    held.layers["raw"] = MATRIX[:, :9]
    held.write_h5ad(tmp_path / "both.h5ad")
    assert len(read_counts(str(tmp_path / "both.h5ad"), "raw").genes) == 9, "a layer of that name comes first"


@needs_scanpy
@pytest.mark.parametrize("size", [0, 100, 3000])
def test_an_empty_or_truncated_file_is_refused(anndata, tmp_path, size):
    whole = h5ad(anndata, tmp_path / "x.h5ad", MATRIX).read_bytes()
    (tmp_path / "x.h5ad").write_bytes(whole[:size])
    with pytest.raises(UsageError, match=r"x\.h5ad' cannot be read as counts"):
        read_counts(str(tmp_path / "x.h5ad"))


@needs_scanpy
@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("X/indices", lambda held: held.__setitem__(0, 10**6)),
        ("X", lambda held: held.attrs.modify("encoding-type", "x")),
    ],
)
def test_a_sparse_file_that_is_damaged_inside_is_refused(anndata, tmp_path, place, change):
    import h5py
    from scipy import sparse

    path = h5ad(anndata, tmp_path / "x.h5ad", sparse.csc_matrix(MATRIX))
    with h5py.File(path, "r+") as file:
        change(file[place])
    for read in (lambda: read_counts(str(path)), lambda: read_matrix(path)):
        with pytest.raises(UsageError, match=r"x\.h5ad'") as raised:
            read()
        assert "\n" not in str(raised.value)


@needs_scanpy
@pytest.mark.parametrize("fault", [{"genes": 7}, {"cut": 200}, {"cut": 0}])
def test_a_folder_whose_files_do_not_fit_is_refused(tmp_path, fault):
    with pytest.raises(UsageError, match="tenx' cannot be read as counts") as raised:
        read_counts(str(tenx(tmp_path / "tenx", **fault)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "layer", "sentence"),
    [
        ("", "", "holds no 10x matrix"),
        ("c.csv", "", r"none of \.npz, \.h5ad and a 10x folder"),
        ("c.npz", "counts", "option layer is 'counts'"),
        ("gone.h5ad", "", "does not exist"),
    ],
)
def test_what_is_no_file_of_counts_is_named(tmp_path, path, layer, sentence):
    save_counts(COUNTS, tmp_path / "c.npz")
    (tmp_path / "c.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match=sentence):
        read_counts(str(tmp_path / path), layer)


@pytest.mark.parametrize("path", ["hub:cells.npz", "hub:owner/name", "hub:owner/name/c.npz@"])
def test_a_path_of_the_hub_that_names_no_file_is_refused(path):
    with pytest.raises(UsageError, match="write hub:OWNER/NAME/FILE"):
        read_counts(path)


ASKED = """
from resia.domains.denoising.matrices import read_counts
from resia.events.errors import AssetError
for path in ("hub:owner/cells/c.npz", "hub:owner/cells/c.npz@" + "a" * 40):
    print(read_counts(path).digest())
try:
    read_counts("hub:owner/cells/d.npz")
except AssetError as cause:
    print(str(cause).splitlines()[0])
"""


def test_a_file_of_the_hub_is_taken_from_its_cache(tmp_path):
    """In a process whose hub is a folder and that may ask no server."""
    kept = tmp_path / "datasets--owner--cells"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    (kept / "snapshots" / ("a" * 40)).mkdir(parents=True)
    save_counts(COUNTS, kept / "snapshots" / ("a" * 40) / "c.npz")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    first, pinned, absent = done.stdout.splitlines()
    assert first == pinned == COUNTS.digest()
    assert absent.startswith("fetching hub:owner/cells/d.npz: ")


def test_an_item_that_would_hold_nothing_out_is_refused_at_once(tmp_path):
    cells, genes = 90, 4
    ones = np.ones(cells * genes, dtype=np.int64)
    thin = Counts(ones, np.tile(np.arange(genes), cells), np.arange(cells + 1) * genes, COUNTS.genes[:genes])
    save_counts(thin, tmp_path / "thin.npz")
    with pytest.raises(UsageError, match=r"item search-00 \(cells=9 depth=1\) would hold out about 4 molecules of 36"):
        Denoising(DenoisingOptions(path=str(tmp_path / "thin.npz")))
    rich = Counts(np.full(cells, 900), np.zeros(cells, dtype=np.int64), np.arange(cells + 1), ("only",))
    save_counts(rich, tmp_path / "rich.npz")
    with pytest.raises(UsageError, match="the counts leave 1 gene in 90 cells"):
        Denoising(DenoisingOptions(path=str(tmp_path / "rich.npz")))
    with pytest.raises(UsageError, match="the counts leave 0 cells"):
        Denoising(DenoisingOptions(path=str(tmp_path / "thin.npz"), min_cells_per_gene=10_000))

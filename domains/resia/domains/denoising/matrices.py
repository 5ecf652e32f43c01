"""Counts from where a person has them: an .npz, an .h5ad, a folder of 10x Genomics, or a file of a data set's hub.

The formats of single-cell work are read by scanpy (extra `bio`), imported when such a file is asked for. Whatever a
matrix came from, the same checks stand between it and the items. Only a `hub:` path fetches anything.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resia.events.errors import AssetError, UsageError, boundary

from .data import Counts, checked_counts, first_line, load_counts

HUB = "hub:"
RAW = "raw"  # what the option layer calls the slot of that name, where no layer has it
HUB_PATH = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")


class NoReader(UsageError):
    """This machine lacks what reads a file; the file may be right."""


def read_counts(path: str, layer: str = "") -> Counts:
    """The counts at `path`: FILE.npz, FILE.h5ad, a 10x folder, or `hub:OWNER/NAME/FILE[@REVISION]` for one of these
    files on the hub of data sets. `layer` names the layer of an .h5ad that holds raw counts, or its slot `raw`; empty:
    its X.

    Raises UsageError naming the file and what is wrong in it, AssetError where the hub does not give it.
    """
    if path.startswith(HUB):
        return _of_file(_fetched(path), path, layer)
    return _of_file(Path(path), path, layer)


def _of_file(file: Path, said: str, layer: str) -> Counts:
    if layer and file.suffix != ".h5ad":
        raise UsageError(f"option layer is '{layer}' and '{said}' has no layers: leave it out, or give an .h5ad")
    if file.is_dir():
        folder = _matrix_folder(file, said)
        return _by_scanpy(said, lambda scanpy: scanpy.read_10x_mtx(folder), "")
    if not file.is_file() or file.suffix == ".npz":
        return load_counts(file)
    if file.suffix == ".h5ad":
        return _by_scanpy(said, lambda scanpy: scanpy.read_h5ad(file), layer)
    raise UsageError(f"counts file '{said}' is none of .npz, .h5ad and a 10x folder: convert it to one of them")


def _matrix_folder(folder: Path, said: str) -> Path:
    """`folder`, where it holds a matrix of 10x Genomics, of version 2 or 3."""
    plain, packed = (all((folder / name).is_file() for name in names) for names in _TENX)
    if not plain and not packed:
        raise UsageError(
            f"folder '{said}' holds no 10x matrix: it needs {', '.join(_TENX[1])}, or of the old form"
            f" {', '.join(_TENX[0])}"
        )
    return folder


_TENX = (("matrix.mtx", "genes.tsv", "barcodes.tsv"), ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"))


def _by_scanpy(said: str, read: Callable[[Any], Any], layer: str) -> Counts:
    """The counts of what `read` gives with scanpy: an AnnData, cells in rows."""
    found = by_scanpy(said, read)
    layers: Mapping[str, Any] = found.layers
    offered = sorted({*layers, *((RAW,) if found.raw is not None else ())})
    held = found.raw if layer == RAW and RAW in offered and RAW not in layers else found
    matrix = layers.get(layer) if layer and held is found else held.X
    if matrix is None:
        named = f"layer '{layer}'" if layer else "matrix X"
        offer = f"the option layer may name {', '.join(offered)}" if offered else "its layers are none"
        raise UsageError(f"'{said}' has no {named}: {offer}")
    try:
        return _checked(said, matrix, tuple(held.shape), tuple(map(str, held.var_names)))
    except UsageError as cause:
        if layer or not offered:
            raise
        raise UsageError(
            f"{cause}, or name where the file has them with the option layer: {', '.join(offered)}"
        ) from cause


def by_scanpy(said: str, read: Callable[[Any], Any]) -> Any:
    """What `read` gives with scanpy. Raises NoReader where that is not installed, UsageError for a damaged file."""
    try:
        import scanpy
    except ImportError as missing:
        raise NoReader(f"'{said}' is read by scanpy ({missing}): install resia[bio], or give an .npz") from missing
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* names are not unique")  # they are known by their place
            return read(scanpy)
    except Exception as cause:  # the readers under scanpy have errors of their own for a damaged file
        why = first_line(cause)
        raise UsageError(f"'{said}' cannot be read as counts ({why}): it is damaged or of another format") from cause


def check_places(said: str, matrix: Any) -> None:
    """UsageError for a sparse matrix with values outside of it: scipy would write them beyond its own memory."""
    if hasattr(matrix, "check_format"):
        try:
            matrix.check_format(full_check=True)
        except ValueError as cause:
            raise UsageError(
                f"the sparse matrix of '{said}' is damaged ({first_line(cause)}): write it again"
            ) from cause


def _checked(said: str, matrix: Any, shape: tuple[int, ...], genes: tuple[str, ...]) -> Counts:
    """A dense or sparse matrix (cells, genes) as counts, by the checks that an .npz has to pass."""
    from scipy import sparse

    check_places(said, matrix)
    rows = sparse.csr_matrix(matrix)
    rows.sum_duplicates()
    arrays = {
        "data": np.asarray(rows.data),
        "indices": np.asarray(rows.indices),
        "indptr": np.asarray(rows.indptr),
        "shape": np.array(shape),
        "genes": np.array(genes),
    }
    return checked_counts(arrays, said)


def _fetched(path: str) -> Path:
    """The file of a `hub:` path in the hub's own cache, downloaded where it is not there."""
    asked = HUB_PATH.fullmatch(path)
    if asked is None:
        raise UsageError(f"'{path}' names no file of the hub: write hub:OWNER/NAME/FILE, with @REVISION or without")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as missing:
        raise UsageError(f"'{path}' is fetched by huggingface_hub ({missing}): install resia[local]") from missing
    with boundary(AssetError, f"fetching {path}"):
        return Path(
            hf_hub_download(asked["repo"], asked["file"], repo_type="dataset", revision=asked["revision"] or "main")
        )

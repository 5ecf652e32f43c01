"""Matrices in files: answers, and halves that others have made. Dense in memory, cells in rows, names where there are.

An .npz holds `X` (cells, genes), or the arrays of a compressed sparse matrix as `data` has them; `genes` and `cells`
are names, and may be missing. An .h5ad is read by scanpy. A .csv has gene names in its first row and cell names in its
first column. Knows nothing of items or scores.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resia.events.errors import UsageError

from .data import UNREADABLE, first_line, texts
from .matrices import by_scanpy, check_places

SPARSE = ("data", "indices", "indptr", "shape")  # of a compressed sparse matrix, as scipy saves it too
SUFFIXES = (".npz", ".h5ad", ".csv")
Names = tuple[str, ...]


class Named(NamedTuple):
    """Values (cells, genes), and the names of both where the file has them."""

    values: NDArray[np.float64]
    cells: Names | None
    genes: Names | None


def read_matrix(path: Path) -> Named:
    """Raises UsageError in one sentence with the file and what is wrong in it. The values are any numbers."""
    if path.suffix == ".npz":
        return npz_matrix(path, read_arrays(path))
    if path.suffix == ".csv":
        return _checked(path, _csv(path))
    if path.suffix == ".h5ad":
        return _checked(path, _h5ad(path))
    raise UsageError(f"matrix '{path}' is of no known form: give {', '.join(SUFFIXES)}")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz. Raises UsageError for a file that is none, or not a whole one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as cause:
        raise _unreadable(path, cause) from cause


def write_matrix(path: Path, matrix: Named) -> Path:
    """An .npz that `read_matrix` takes, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    names = {"cells": matrix.cells, "genes": matrix.genes}
    with partial.open("wb") as stream:
        held = {name: np.array(found) for name, found in names.items() if found is not None}
        np.savez_compressed(stream, X=matrix.values, **held)  # type: ignore[arg-type]
    partial.replace(path)
    return path


def in_order(found: Named, like: Named, said: str) -> NDArray[np.float64]:
    """The values with the cells and genes of `like` in their order. Raises UsageError where names or sizes do not fit;
    a file without names is taken as it stands."""
    rows = _places("cell", found.cells, like.cells, found.values.shape[0], like.values.shape[0], said)
    columns = _places("gene", found.genes, like.genes, found.values.shape[1], like.values.shape[1], said)
    return found.values[rows][:, columns]


def _places(what: str, found: Names | None, like: Names | None, held: int, wanted: int, said: str) -> NDArray[np.intp]:
    if found is not None and like is not None and set(found) != set(like):
        missing = [name for name in like if name not in set(found)]
        extra = [name for name in found if name not in set(like)]
        wrong = f"lacks {what} '{missing[0]}'" if missing else f"has {what} '{extra[0]}', which is not one of them"
        raise UsageError(f"'{said}' {wrong}: give the {wanted} {what}s that the item has, by their names")
    if held != wanted:
        raise UsageError(f"'{said}' has {held} {what}s and the item {wanted}: give a matrix of the item's own shape")
    if found is None or like is None:
        return np.arange(wanted)
    place = {name: number for number, name in enumerate(found)}
    return np.array([place[name] for name in like], dtype=np.intp)


def _checked(path: Path, found: Named) -> Named:
    values, cells, genes = found
    if values.ndim != 2 or not values.size:
        raise UsageError(f"matrix '{path}' has the shape {values.shape}: give cells in rows and genes in columns")
    for what, names, size in (("cells", cells, values.shape[0]), ("genes", genes, values.shape[1])):
        if names is not None and len(names) != size:
            raise UsageError(f"matrix '{path}' names {len(names)} {what} and has {size}: give each one name")
        if names is not None and len(set(names)) != size:
            raise UsageError(f"matrix '{path}' names two {what} alike: give each a name of its own")
    return found


def npz_matrix(path: Path, arrays: Mapping[str, NDArray[Any]], name: str = "X") -> Named:
    """The dense array `name` of an .npz, or its compressed sparse ones."""
    if name in arrays:
        values = arrays[name]
    elif set(SPARSE) <= set(arrays):
        values = _dense(path, arrays)
    else:
        held = ", ".join(sorted(arrays)) or "none"
        raise UsageError(
            f"'{path}' holds no array {name}: its arrays are {held}; save it as {name}, or csr or csc as scipy does"
        )
    return _checked(path, Named(_numbers(path, values), _names(arrays.get("cells")), _names(arrays.get("genes"))))


def _dense(path: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    from scipy import sparse

    data, indices, indptr = (arrays[name] for name in ("data", "indices", "indptr"))
    form = texts(arrays["format"])[0] if "format" in arrays else "csr"  # which scipy writes beside them
    kind = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}.get(form)
    if kind is None:
        raise UsageError(f"'{path}' holds a sparse matrix of the form {form}: give csr, csc or a dense X")
    try:
        rows = kind((data, indices, indptr), shape=tuple(arrays["shape"]))
        check_places(str(path), rows)
        found: NDArray[Any] = rows.toarray()
    except (ValueError, TypeError, IndexError, MemoryError) as cause:
        raise _unreadable(path, cause) from cause
    return found


def _numbers(path: Path, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "biuf":
        raise UsageError(f"matrix '{path}' holds {values.dtype} and no numbers: convert it")
    return np.asarray(values, dtype=np.float64)


def _names(found: NDArray[Any] | None) -> Names | None:
    return None if found is None else texts(found)


def _csv(path: Path) -> Named:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise _unreadable(path, cause) from cause
    if len(rows) < 2:
        raise UsageError(f"matrix '{path}' has no cells: give gene names in its first row and then a row for each cell")
    genes = tuple(rows[0][1:])
    values = [_row(path, number, row, len(genes)) for number, row in enumerate(rows[1:], start=2)]
    return Named(np.array(values).reshape(len(values), len(genes)), tuple(row[0] for row in rows[1:]), genes)


def _row(path: Path, number: int, row: Sequence[str], genes: int) -> list[float]:
    if len(row) != genes + 1:
        raise UsageError(f"row {number} of '{path}' has {len(row) - 1} values for {genes} genes: is the file whole?")
    try:
        return [float(value) for value in row[1:]]
    except ValueError as cause:
        raise UsageError(f"row {number} of '{path}' holds no numbers ({cause}): write each as a number") from None


def _h5ad(path: Path) -> Named:
    found = by_scanpy(str(path), lambda scanpy: scanpy.read_h5ad(path))
    check_places(str(path), found.X)
    values = found.X.toarray() if hasattr(found.X, "toarray") else np.asarray(found.X)
    return Named(_numbers(path, values), tuple(map(str, found.obs_names)), tuple(map(str, found.var_names)))


def _unreadable(path: Path, cause: Exception) -> UsageError:
    return UsageError(
        f"matrix '{path}' cannot be read ({first_line(cause)}): it is damaged, cut off or of another format"
    )

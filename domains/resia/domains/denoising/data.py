"""Counts on disk: a compressed sparse matrix of molecules in an .npz file, checked as it is read.

Arrays: `data` (counts), `indices` (gene column of each), `indptr` (cells + 1 offsets), `shape` (cells, genes), `genes`
(names). `convert_celltypist_csv` writes that format. Nothing here fetches anything.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resia.events.errors import UsageError

from .metrics import Floats

WHOLE = 1e-4  # how far a count may be from a whole number: celltypist writes 0.999999999999999 for 1
LARGEST = 2**24  # molecules of a gene in a cell: more are not exact in single precision
ARRAYS = ("data", "indices", "indptr", "shape", "genes")
# What numpy and zipfile raise for a file that is damaged, cut off, locked or larger than the memory.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)
INTEGERS = ("indices", "indptr", "shape")
Integers = NDArray[np.int64]


class Counts(NamedTuple):
    """Molecule counts: cell i has data[indptr[i]:indptr[i+1]] molecules of the genes in the same slice of indices."""

    data: Integers
    indices: Integers
    indptr: Integers
    genes: tuple[str, ...]

    @property
    def cells(self) -> int:
        return len(self.indptr) - 1

    def dense(self, rows: Integers) -> Floats:
        """Counts of some cells, (len(rows), genes), single precision (exact below 2**24)."""
        out = np.zeros((len(rows), len(self.genes)), dtype=np.float32)
        for place, row in enumerate(rows):
            span = slice(self.indptr[row], self.indptr[row + 1])
            out[place, self.indices[span]] = self.data[span]
        return out

    def genes_in(self, min_cells: int) -> Counts:
        """Only genes counted in at least `min_cells` cells."""
        kept = np.bincount(self.indices, minlength=len(self.genes)) >= min_cells
        column = np.cumsum(kept) - 1
        entries = kept[self.indices]
        offsets = np.concatenate(([0], np.cumsum(entries)))[self.indptr]
        names = tuple(name for name, keep in zip(self.genes, kept, strict=True) if keep)
        return Counts(self.data[entries], column[self.indices[entries]], offsets, names)

    def digest(self) -> str:
        """SHA-256 over every array, whatever integer width it was stored with."""
        state = hashlib.sha256()
        for array in (self.data, self.indices, self.indptr):
            state.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        state.update("\n".join(self.genes).encode())
        return state.hexdigest()


def load_counts(path: Path) -> Counts:
    """Read an .npz of counts without zeros. Raises UsageError naming the file and what is wrong in it."""
    if not path.is_file():
        raise UsageError(f"counts file '{path}' does not exist: check the option path")
    try:
        with zipfile.ZipFile(path) as check:
            held = {name.removesuffix(".npy") for name in check.namelist()}
        if missing := [name for name in ARRAYS if name not in held]:
            raise UsageError(f"counts file '{path}' lacks the array '{missing[0]}': it needs {', '.join(ARRAYS)}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except UNREADABLE as cause:
        why = first_line(cause)
        raise UsageError(f"counts file '{path}' is not an .npz of plain arrays ({why}): convert it again") from cause
    return checked_counts(arrays, str(path))


def first_line(cause: Exception) -> str:
    """Of what an error says, or its kind where it says nothing."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def checked_counts(arrays: Mapping[str, NDArray[np.generic]], said: str) -> Counts:
    """The arrays of a compressed sparse matrix, as `ARRAYS` names them, as counts without zeros.

    Raises UsageError naming the file as it was `said` and what makes the arrays no counts.
    """
    if fault := _fault(arrays):
        raise UsageError(f"counts file '{said}' cannot be used: {fault}")
    data = np.asarray(arrays["data"], dtype=np.float64)
    positive = data > 0
    offsets = np.concatenate(([0], np.cumsum(positive)))[arrays["indptr"].astype(np.int64)]
    whole = np.rint(data[positive]).astype(np.int64)
    return Counts(whole, arrays["indices"][positive].astype(np.int64), offsets, texts(arrays["genes"]))


def texts(names: NDArray[np.generic]) -> tuple[str, ...]:
    """Names as text, also where a file keeps them as bytes."""
    return tuple(
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.ravel().tolist()
    )


def _fault(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """What makes the arrays no matrix of counts, with the fix; '' when nothing does."""
    data, indices, indptr = arrays["data"], arrays["indices"], arrays["indptr"]
    if data.dtype.kind not in "iuf" or any(arrays[name].dtype.kind not in "iu" for name in INTEGERS):
        return f"data must be numbers and {', '.join(INTEGERS)} integers"
    if arrays["shape"].shape != (2,) or min(arrays["shape"]) < 1:
        return f"shape is {arrays['shape'].tolist()}: give a number of cells and a number of genes"
    cells, genes = (int(n) for n in arrays["shape"])
    lengths = {"indptr": cells + 1, "genes": genes, "indices": data.size, "data": data.size}
    for name, length in lengths.items():
        if arrays[name].shape != (length,):
            return f"{name} has shape {arrays[name].shape} where {cells} cells x {genes} genes need ({length},)"
    sizes = np.subtract(indptr[1:], indptr[:-1], dtype=np.int64)
    if not (indptr[0] == 0 and indptr[-1] == len(data) and (sizes >= 0).all()):
        return f"indptr must rise from 0 to the number of counts, {len(data)}"
    if len(data) and not (indices.min() >= 0 and indices.max() < genes):
        return f"a column index lies outside the {genes} genes"
    rows = np.repeat(np.arange(cells), sizes)
    if len(np.unique(rows * genes + indices.astype(np.int64))) < len(data):
        return "a gene is listed twice in one cell; add its counts up"
    return count_fault(data)


def count_fault(data: NDArray[np.generic]) -> str:
    """What makes numbers no molecule counts, with the fix; '' when nothing does."""
    values = data.astype(np.float64)
    if not np.isfinite(values).all():
        return "a count is NaN or infinite; remove such entries"
    if (values < 0).any():
        return f"a count is negative ({values.min():g}); give raw molecule counts, not scaled values"
    if (off := np.abs(values - np.rint(values))).size and off.max() > WHOLE:
        return (
            f"a count is fractional ({values.ravel()[off.argmax()]:g}); give raw molecule counts, not normalised values"
        )
    if values.max(initial=0.0) > LARGEST:
        return f"a count is {values.max():g}, more than {LARGEST:,}; give raw molecule counts"
    return ""


def convert_celltypist_csv(source: Path | IO[bytes], out: Path) -> None:
    """Turn celltypist's `sample_cell_by_gene.csv` (a header of gene names, then a row for each cell) into `out`.

    One row is in memory at a time; genes without any count are dropped. `source` may be an open member of the wheel.
    `out` appears whole or not at all. Raises UsageError for values that are no counts or rows of another length.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            convert_celltypist_csv(stream, out)
        return
    text = io.TextIOWrapper(source, encoding="utf-8", newline="")
    try:
        counts = _from_rows(csv.reader(text))
    finally:
        text.detach()  # the stream stays the caller's to close
    save_counts(counts.genes_in(1), out)


def _from_rows(rows: Iterator[list[str]]) -> Counts:
    genes = tuple(next(rows, [""])[1:])
    values, columns, offsets = [], [], [0]
    for number, row in enumerate(rows, start=1):
        try:
            cell = np.array(row[1:], dtype=np.float64)
        except ValueError as cause:
            raise UsageError(f"row {number} of the counts table holds no numbers ({cause}): fetch it again") from cause
        if len(cell) != len(genes):
            raise UsageError(
                f"row {number} of the counts table has {len(cell)} values for {len(genes)} genes: fetch it again"
            )
        if fault := count_fault(cell):
            raise UsageError(f"row {number} of the counts table cannot be used: {fault}")
        whole = np.rint(cell).astype(np.int64)
        columns.append(np.flatnonzero(whole))
        values.append(whole[columns[-1]])
        offsets.append(offsets[-1] + len(columns[-1]))
    if not values:
        raise UsageError("the counts table has no cells: fetch it again")
    return Counts(np.concatenate(values), np.concatenate(columns), np.array(offsets), genes)


def save_counts(counts: Counts, out: Path) -> None:
    """Write the .npz format with the narrowest unsigned integers that fit; equal counts give equal bytes."""
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            data=counts.data.astype(np.min_scalar_type(counts.data.max(initial=256))),
            indices=counts.indices.astype(np.min_scalar_type(max(256, len(counts.genes)))),
            indptr=counts.indptr.astype(np.int32),
            shape=np.array([counts.cells, len(counts.genes)], dtype=np.int32),
            genes=np.array(counts.genes),
        )
    partial.replace(out)

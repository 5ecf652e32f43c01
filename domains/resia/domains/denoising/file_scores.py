"""Denoised matrices in files, scored without a run: answers to the domain's items, or to halves that others have made.

A file is called after the item that it answers: `validation-03.npz`, or `whole.npz` for all cells, split by the
published recipe; a folder holds several. Halves of one's own come as three matrices, train, test and denoised: arrays
of one .npz, or files of a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resia.domains.base import FileScore
from resia.events.errors import UsageError

from .data import count_fault
from .matrices import NoReader
from .matrix_files import SUFFIXES, Named, in_order, npz_matrix, read_arrays, read_matrix
from .metrics import Judge, Verdict, mse, nothing, poisson, poisson_published

Protocol = Literal["audited", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("audited", "published")
WHOLE_ITEM = "whole"
PARTS = ("train", "test", "denoised")
MISSING, UNKNOWN = "missing", "unknown_item"


class Held(NamedTuple):
    """What an answer is scored against. `train` has the names that an answer may carry."""

    train: Named
    test: NDArray[np.float64]


class Answered(NamedTuple):
    """A matrix in the order of its item, and what it is scored against."""

    matrix: NDArray[np.float64]
    held: Held


def score_matrices(
    protocol: Protocol, path: Path, splits: Mapping[str, Sequence[str]], held: Callable[[str], Held]
) -> tuple[FileScore, ...]:
    """One score a split with an answer; `splits` lists the items of each, `whole` among them, and `held` lays one out.

    Raises UsageError as `FileScored.score_file` does.
    """
    if (own := _own_halves(path)) is not None:
        halves, denoised = own
        given = {"given": Answered(in_order(denoised, halves.train, str(path)), halves)}
        return (_score(protocol, "given", ["given"], given, {}, {}),)
    files = _files(path)
    known = {item for items in splits.values() for item in items}
    ignored = Counter(UNKNOWN for item in files if item not in known)
    if not known & set(files):
        raise UsageError(
            f"'{path}' answers no item: call a file after the one that it answers, such as {min(known)}{SUFFIXES[0]} or"
            f" {WHOLE_ITEM}{SUFFIXES[0]}, or give three matrices, {', '.join(PARTS)}"
        )
    found = {split: _answers(items, files, held) for split, items in splits.items()}
    wrong = [why for _, refused in found.values() for why in refused.values()]
    if not any(answers for answers, _ in found.values()):
        raise UsageError(wrong[0])
    return tuple(
        _score(protocol, split, splits[split], answers, refused, ignored)
        for split, (answers, refused) in found.items()
        if answers or refused
    )


def _answers(
    items: Sequence[str], files: Mapping[str, Path], held: Callable[[str], Held]
) -> tuple[dict[str, Answered], dict[str, str]]:
    """Answers by item, and what is wrong with those that are no matrix of their item."""
    answers, refused = dict[str, Answered](), dict[str, str]()
    for item in (item for item in items if item in files):
        halves = held(item)
        try:
            answers[item] = Answered(in_order(read_matrix(files[item]), halves.train, str(files[item])), halves)
        except NoReader:
            raise
        except UsageError as cause:
            refused[item] = str(cause)
    return answers, refused


def _files(path: Path) -> dict[str, Path]:
    """Matrices by the item that they are called after."""
    if path.is_dir():
        return _by_stem(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"predictions '{path}' are of no known form: give {', '.join(SUFFIXES)} or a folder of them")
    return {path.stem: path}


def _by_stem(folder: Path) -> dict[str, Path]:
    held: dict[str, Path] = {}
    for file in (found for found in sorted(folder.iterdir()) if found.suffix in SUFFIXES):
        if (other := held.setdefault(file.stem, file)) != file:
            raise UsageError(f"'{folder}' has {other.name} and {file.name} for one matrix: leave one of them there")
    return held


def _own_halves(path: Path) -> tuple[Held, Named] | None:
    """Train, test and denoised matrices, where `path` holds them."""
    if path.is_dir():
        parts = _by_stem(path)
        if not set(PARTS) <= set(parts):
            return None
        train, test, denoised = (read_matrix(parts[name]) for name in PARTS)
    elif path.suffix == ".npz" and set(PARTS) <= set(arrays := read_arrays(path)):
        train, test, denoised = (npz_matrix(path, arrays, name) for name in PARTS)
    else:
        return None
    _counts(train, f"{path}: train")
    _counts(test, f"{path}: test")
    return _filtered(Held(train, in_order(test, train, f"{path}: test")), path), _answer(denoised, train, path)


def _answer(denoised: Named, train: Named, path: Path) -> Named:
    """The answer to the cells and genes that are left of `train`."""
    values = in_order(denoised, train, f"{path}: denoised")
    cells, genes = _kept(train.values)
    return Named(values[cells][:, genes], None, None)


def _kept(train: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells and genes with a training count: no other can be denoised, and the recipe has dropped them."""
    return np.asarray(train.any(1)), np.asarray(train.any(0))


def _filtered(held: Held, path: Path) -> Held:
    cells, genes = _kept(held.train.values)
    test = held.test[cells][:, genes]
    if not cells.any() or not test.any():
        what = "training" if not cells.any() else "test"
        raise UsageError(f"'{path}' leaves no cells with {what} counts: give halves that hold molecules")
    train = held.train.values[cells][:, genes]
    if not mse(train, test):
        raise UsageError(f"train and test of '{path}' have one profile, so no answer can do better: give other halves")
    return Held(Named(train, None, None), test)


def _counts(found: Named, said: str) -> None:
    """Raises UsageError for what cannot be molecule counts."""
    if fault := count_fault(found.values):
        raise UsageError(f"'{said}' cannot be used: {fault}")


def _score(
    protocol: Protocol,
    split: str,
    items: Sequence[str],
    answers: Mapping[str, Answered],
    refused: Mapping[str, str],
    ignored: Mapping[str, int],
) -> FileScore:
    """Means over all of `items`; the losses, which have no worst value, over those that are answered and finite."""
    losses, invalid = list[dict[str, float]](), Counter[str](refused.values())
    rows = [_norms(protocol, nothing(why)) for why in refused.values()]
    for answer, halves in answers.values():
        verdict = Judge(halves.train.values, halves.test).verdict(answer)
        why = verdict.fault if protocol == "audited" else verdict.gate
        invalid.update([why] if why else [])
        rows.append(_norms(protocol, verdict))
        losses.append(dict(_losses(protocol, answer, halves)))
    if missing := len(items) - len(rows):
        invalid[MISSING] = missing
    scores = {name: sum(row[name] for row in rows) / len(items) for name in rows[0]}
    for name in {name: None for row in losses for name in row}:
        finite = [row[name] for row in losses if np.isfinite(row[name])]
        if finite:
            scores[name] = sum(finite) / len(finite)
    count, given = len(items), len(answers)
    return FileScore(protocol, split, count, given, given / count, scores, dict(invalid), dict(ignored))


def _norms(protocol: Protocol, verdict: Verdict) -> dict[str, float]:
    if protocol == "audited":
        return {"audited": verdict.audited, "mse_norm": verdict.mse_norm, "poisson_norm": verdict.poisson_norm}
    return {
        "published": verdict.published,
        "mse_norm": verdict.mse_norm,
        "poisson_norm": verdict.poisson_norm_published,
    }


def _losses(protocol: Protocol, answer: NDArray[np.float64], held: Held) -> Iterator[tuple[str, float]]:
    """The losses themselves, of the answer, of no denoising and of the perfect answer, as the originals print them."""
    train, test = held.train.values, held.test
    loss = poisson if protocol == "audited" else poisson_published
    depth = test.sum() / train.sum()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        yield "mse", mse(answer, test)
        yield "mse_none", mse(train, test)
        yield "poisson", loss(answer * depth, test)
        yield "poisson_none", loss(train * depth, test)
        yield "poisson_perfect", loss(test * depth, test)

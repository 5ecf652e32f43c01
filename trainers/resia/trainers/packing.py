"""Rows into micro-batches: which go together, what prefix they share, and their arrays.

What prompts begin with in common is run once (see `layout`), so a micro-batch costs the tokens of the tree that its
rows form, and rows never cost more together than apart: a micro-batch takes neighbours until its budget is full.
Arrays are padded on the right for whoever compares rows; the model does not run those pads. Arrays are numpy; knows
nothing of torch or algorithms.
"""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .batch import Floats, Row

Ints = npt.NDArray[np.int64]


class Padded(NamedTuple):
    """One micro-batch of B rows, T the longest completion, S the longest suffix, P the shared prefix.

    Row b's suffix is the rest of its prompt and its completion without the last token; `index_B_T` is where in the
    suffix token t of the completion is predicted. Off the mask everything is 0.
    """

    prefix_P: Ints
    inputs_B_S: Ints
    index_B_T: Ints
    tokens_B_T: Ints
    logprobs_B_T: Floats
    temperature_B: Floats
    mask_B_T: npt.NDArray[np.bool_]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that both begin with."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def shared_prefix(rows: Sequence[Row]) -> int:
    """Prompt tokens that every row begins with, leaving each at least one of its own; 0 for a single row.

    The lexicographically first and last prompt agree only on what all in between agree on.
    """
    if len(rows) == 1:
        return 0
    prompts = [row.prompt_ids for row in rows]
    return min(common_prefix(min(prompts), max(prompts)), min(map(len, prompts)) - 1)


def cost(rows: Sequence[Row]) -> int:
    """Tokens that the model runs for `rows`, in the order of `pack`, as one micro-batch: those of a prompt that the one
    before begins with as well count once. Pads between rows of nearly one length come to it."""
    lengths = [_length(row) for row in rows]
    return sum(lengths) - sum(_shared(before, row) for before, row in pairwise(rows))


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.completion_ids) - 1


def _shared(before: Row, row: Row) -> int:
    """Leading prompt tokens that both have, leaving each at least one of its own."""
    found = common_prefix(before.prompt_ids, row.prompt_ids)
    return min(found, len(before.prompt_ids) - 1, len(row.prompt_ids) - 1)


def pack(rows: Sequence[Row], micro_tokens: int) -> list[tuple[int, ...]]:
    """Micro-batches of indices into `rows`, each at most `micro_tokens` by `cost` unless a single row is longer.

    Rows are taken by prompt, then length, so neighbours share prefixes and pad little; the result does not depend on
    the order of rows that differ.
    """

    def place(index: int) -> tuple[tuple[int, ...], int, int, int]:
        row = rows[index]
        return row.prompt_ids, len(row.completion_ids), row.sample, row.turn

    packs: list[tuple[int, ...]] = []
    current: list[int] = []
    spent = 0
    for index in sorted(range(len(rows)), key=place):
        own = _length(rows[index])
        more = own - _shared(rows[current[-1]], rows[index]) if current else own
        if current and spent + more > micro_tokens:
            packs.append(tuple(current))
            current, spent, more = [], 0, own
        current.append(index)
        spent += more
    return [*packs, tuple(current)] if current else packs


def pad(rows: Sequence[Row], prefix: int | None = None) -> Padded:
    """Arrays of one micro-batch. `prefix` (default: all they share) is at most `shared_prefix(rows)`."""
    shared = shared_prefix(rows) if prefix is None else prefix
    size = (len(rows), max(len(row.completion_ids) for row in rows))
    inputs_B_S = np.zeros((len(rows), max(_length(row) for row in rows) - shared), dtype=np.int64)
    index_B_T, tokens_B_T = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    logprobs_B_T, mask_B_T = np.zeros(size), np.zeros(size, dtype=np.bool_)
    for b, row in enumerate(rows):
        length = len(row.completion_ids)
        suffix = (*row.prompt_ids[shared:], *row.completion_ids[:-1])
        inputs_B_S[b, : len(suffix)] = suffix
        index_B_T[b, :length] = np.arange(length) + len(row.prompt_ids) - shared - 1
        tokens_B_T[b, :length] = row.completion_ids
        logprobs_B_T[b, :length] = row.logprobs
        mask_B_T[b, :length] = True
    return Padded(
        prefix_P=np.array(rows[0].prompt_ids[:shared], dtype=np.int64),
        inputs_B_S=inputs_B_S,
        index_B_T=index_B_T,
        tokens_B_T=tokens_B_T,
        logprobs_B_T=logprobs_B_T,
        temperature_B=np.array([row.temperature for row in rows]),
        mask_B_T=mask_B_T,
    )

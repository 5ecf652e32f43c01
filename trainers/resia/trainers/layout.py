"""Where each token of a micro-batch stands when shared prefixes are run once and nothing is padded that need not be.

The rows of a micro-batch form a tree of tokens: what several rows begin with is one segment, which all of them attend
to. The segments lie one after another in a single sequence, so the model's linear layers see every shared token once.
Leaves of like length are one rectangular segment, padded on the right, because one call of attention for several rows
costs less than a few pad tokens. Arrays are numpy; collaborator: trunk runs it. Knows nothing of torch or models.
"""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .packing import Ints, Padded, common_prefix

# Token positions that one more segment is worth: its calls of attention in every layer cost about as much.
SEGMENT_COST = 12


class Segment(NamedTuple):
    """`rows` x `length` neighbouring tokens that attend to themselves causally and to all of `parent`, an earlier
    segment of one row, and its ancestors; -1 for none. `past` counts those ancestors' tokens."""

    rows: int
    length: int
    parent: int
    past: int


class Layout(NamedTuple):
    """N tokens in segments. `place_B_S` is where input s of row b of the micro-batch stands among them; rows that share
    a token share its place, and pads have place 0."""

    segments: tuple[Segment, ...]
    ids_N: Ints
    positions_N: Ints
    place_B_S: Ints


def arrange(padded: Padded) -> Layout:
    """The layout of a micro-batch; equal micro-batches have equal layouts."""
    lengths_B = padded.index_B_T.max(axis=1) + 1
    rows = [tuple(ids_S[:length].tolist()) for ids_S, length in zip(padded.inputs_B_S, lengths_B, strict=True)]
    tree = _Tree(rows, padded.inputs_B_S.shape)
    root = tree.add([padded.prefix_P.tolist()], -1) if len(padded.prefix_P) else -1
    tree.grow(sorted(range(len(rows)), key=lambda b: (rows[b], b)), 0, root)
    return Layout(tuple(tree.segments), np.concatenate(tree.ids), np.concatenate(tree.positions), tree.place_B_S)


class _Tree:
    """Segments as they are added, and the place of every token that is in one."""

    def __init__(self, rows: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> None:
        self.segments: list[Segment] = []
        self.ids: list[Ints] = []
        self.positions: list[Ints] = []
        self.place_B_S = np.zeros(shape, dtype=np.int64)
        self._rows = rows
        self._size = 0

    def add(self, tokens: Sequence[Sequence[int]], parent: int) -> int:
        """A segment with a row for each of `tokens`, padded to the longest; its number."""
        length = max(map(len, tokens))
        past = self.segments[parent].past + self.segments[parent].length if parent >= 0 else 0
        ids = np.zeros((len(tokens), length), dtype=np.int64)
        for number, row in enumerate(tokens):
            ids[number, : len(row)] = row
        self.segments.append(Segment(len(tokens), length, parent, past))
        self.ids.append(ids.ravel())
        self.positions.append(np.tile(past + np.arange(length), len(tokens)))
        self._size += ids.size
        return len(self.segments) - 1

    def grow(self, members: list[int], depth: int, parent: int) -> None:
        """Segments for `members`, rows in lexicographic order that agree on their first `depth` tokens."""
        leaves: list[int] = []
        for part in self._parts(members, depth):
            shared = common_prefix(self._rows[part[0]], self._rows[part[-1]]) - depth
            if (len(part) - 1) * shared < SEGMENT_COST:
                leaves += part
                continue
            start = self._size
            segment = self.add([self._rows[part[0]][depth : depth + shared]], parent)
            self.place_B_S[part, depth : depth + shared] = start + np.arange(shared)
            self.grow(part, depth + shared, segment)
        self._leaves([b for b in leaves if len(self._rows[b]) > depth], depth, parent)

    def _parts(self, members: list[int], depth: int) -> list[list[int]]:
        """Neighbours with the same token at `depth`; rows that end there by themselves."""
        parts: list[list[int]] = []
        before: tuple[int, ...] | None = None
        for b in members:
            token = self._rows[b][depth : depth + 1]
            if parts and token and token == before:
                parts[-1].append(b)
            else:
                parts.append([b])
            before = token
        return parts

    def _leaves(self, members: list[int], depth: int, parent: int) -> None:
        ordered = sorted(members, key=lambda b: (len(self._rows[b]), b))
        for first, last in rectangles([len(self._rows[b]) - depth for b in ordered]):
            block, start = ordered[first:last], self._size
            self.add([self._rows[b][depth:] for b in block], parent)
            width = self.segments[-1].length
            for number, b in enumerate(block):
                own = len(self._rows[b]) - depth
                self.place_B_S[b, depth : depth + own] = start + number * width + np.arange(own)


def rectangles(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ascending `lengths` into ranges (first, last + 1), each padded to its longest, for the least padding plus
    SEGMENT_COST a range."""
    best, cut = [0], [0]
    for last in range(1, len(lengths) + 1):
        costs = [best[first] + (last - first) * lengths[last - 1] for first in range(last)]
        cut.append(int(np.argmin(costs)))
        best.append(costs[cut[-1]] + SEGMENT_COST)
    found: list[tuple[int, int]] = []
    last = len(lengths)
    while last:
        found.append((cut[last], last))
        last = cut[last]
    return found[::-1]

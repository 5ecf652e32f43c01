"""Near-duplicates among texts: pairs that share most of the shorter one's character 5-grams.

Exact, not sampled: every pair is counted, by one sparse product. Knows nothing of charges or splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .charges import plain

GRAM = 5  # characters
NEAR = 0.6  # share of the shorter text's 5-grams; template sentences alone reach 0.54 in LawBench
_BLOCK = 512  # rows a product
_BASE = np.uint64(1_099_511_628_211)

Grams = NDArray[np.uint64]


def grams(text: str) -> Grams:
    """Distinct character 5-grams of the plain text as 64-bit polynomials of the code points; a shorter text is one."""
    codes = np.frombuffer(plain(text).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    width = min(GRAM, len(codes))
    hashed = np.zeros(max(len(codes) - width + 1, 1), dtype=np.uint64)
    for place in range(width):
        hashed = hashed * _BASE + codes[place : place + len(hashed)]
    return np.unique(hashed)


def near_pairs(texts: Sequence[str], share: float = NEAR) -> list[tuple[int, int]]:
    """Pairs (i < j) of which the text with fewer 5-grams has at least `share` of them in the other, sorted."""
    if len(texts) < 2:
        return []
    held = [grams(text) for text in texts]
    sizes = np.array([len(row) for row in held])
    _, columns = np.unique(np.concatenate(held), return_inverse=True)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    matrix = sparse.csr_array((np.ones(len(columns), dtype=np.int32), columns, offsets))
    other, pairs = matrix.T.tocsr(), []
    for start in range(0, len(texts), _BLOCK):
        shared = (matrix[start : start + _BLOCK] @ other).tocoo()
        rows, found = shared.row + start, shared.col
        near = (rows < found) & (shared.data >= share * np.minimum(sizes[rows], sizes[found]))
        pairs += list(zip(rows[near].tolist(), found[near].tolist(), strict=True))
    return sorted(pairs)


def groups(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The smallest number of each one's group, where groups are what `pairs` connect."""
    head = list(range(count))

    def top(number: int) -> int:
        while head[number] != number:
            head[number] = head[head[number]]
            number = head[number]
        return number

    for one, two in pairs:
        first, second = sorted((top(one), top(two)))
        head[second] = first
    return [top(number) for number in range(count)]

"""What tests of programs share: a chamber that loads little, a tier's own, and programs that a model may write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from resia.domains.denoising.program_tool import shipped
from resia.events.errors import UsageError
from resia.runtime.chamber.forks import FOLDERS
from resia.runtime.chamber.programs import ProgramChamber
from resia.runtime.chamber.tiers import candidates

TIERS = tuple(candidates("cpu", tuple(FOLDERS.values())))
NONE, MAGIC = shipped("none"), shipped("magic")
COMPONENTS = """import numpy as np
from scipy.linalg import svd


def denoise(X, seed, rank=5):
    size = X.sum(1, keepdims=True)
    roots = np.sqrt(X / np.maximum(size, 1))
    left, values, right = svd(roots, full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]) ** 2 * size
"""


def chamber_of(tier=None, libraries=()) -> Iterator[ProgramChamber]:
    """For a fixture to yield from; the test is skipped where the tier, or any at all, does not hold."""
    try:
        made = ProgramChamber(libraries=libraries, tiers=None if tier is None else [tier])
    except UsageError as cause:
        pytest.skip(str(cause))
    with made:
        yield made


def body(lines: str, before: str = "") -> str:
    """A program with these lines in denoise."""
    return f"{before}\ndef denoise(X, seed):\n " + lines.strip().replace("\n", "\n ") + "\n"

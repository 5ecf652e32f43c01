"""MAGIC by three hands, each in a process of its own: resia's, one written plainly with common libraries (with exact
and with randomised components), and its authors' package (`magic-impute`), in an environment of another Python.

    python sides.py SIDE HALVES.npz OUT REPEATS

HALVES holds `train` (cells, genes). Writes OUT.npy, the denoised counts of order `rev`, and prints one line of JSON:
wall and processor seconds of the fastest of REPEATS, without imports.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

KNN, STEPS, COMPONENTS, THRESHOLD = 5, 3, 100, 1e-4
Matrix = Any  # this file runs where only numpy is sure to be


def _rooted(train: Matrix) -> tuple[Matrix, Matrix]:
    """Square roots divided by each cell's sum, and those sums (cells, 1)."""
    root = np.sqrt(train)
    size = root.sum(1, keepdims=True)
    return root / size, size


def ours() -> Callable[[Matrix], Matrix]:
    from resia.domains.denoising.magic import Config, Magic

    return lambda train: Magic(train, 0.1).denoise(Config(KNN, STEPS, "rev", False, False, False))


def plain(solver: str = "full") -> Callable[[Matrix], Matrix]:
    """The definition with scikit-learn's PCA and neighbours and scipy's sparse matrices."""
    from scipy import sparse
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    def denoise(train: Matrix) -> Matrix:
        values, size = _rooted(train.astype(np.float64))
        scores = PCA(COMPONENTS, svd_solver=solver, random_state=0).fit_transform(values)
        near = NearestNeighbors(n_neighbors=3 * KNN + 1).fit(scores)
        distances, others = near.kneighbors(scores)
        kernel = np.exp(-distances / distances[:, [KNN]])
        kernel[kernel < THRESHOLD] = 0.0
        rows = np.repeat(np.arange(len(train)), others.shape[1])
        graph = sparse.csr_matrix((kernel.ravel(), (rows, others.ravel())), shape=(len(train),) * 2)
        graph = (graph + graph.T) / 2
        step = sparse.diags(1.0 / np.asarray(graph.sum(1)).ravel()) @ graph
        for _ in range(STEPS):
            values = step @ values
        return values**2 * size

    return denoise


def authors() -> Callable[[Matrix], Matrix]:
    magic = import_module("magic")  # in the other environment alone

    def denoise(train: Matrix) -> Matrix:
        values, size = _rooted(train.astype(np.float64))
        operator = magic.MAGIC(
            knn=KNN, knn_max=3 * KNN, decay=1, t=STEPS, n_pca=COMPONENTS, solver="exact", random_state=0, verbose=0
        )
        return np.asarray(operator.fit_transform(values, genes="all_genes")) ** 2 * size

    return denoise


SIDES: dict[str, Callable[[], Callable[[Matrix], Matrix]]] = {
    "resia": ours,
    "plain": plain,
    "randomised": partial(plain, "randomized"),  # as the authors' package finds its components
    "authors": authors,
}
PACKAGES = {"resia": "resia", "plain": "scikit-learn", "randomised": "scikit-learn", "authors": "magic-impute"}


def main(side: str, halves: str, out: str, repeats: int) -> None:
    denoise, train = SIDES[side](), np.load(halves)["train"]
    spent: list[tuple[float, float]] = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        answer = denoise(train)
        spent.append((time.perf_counter() - wall, time.process_time() - processor))
    np.save(out, answer)
    fastest = min(spent)
    package = f"{PACKAGES[side]} {version(PACKAGES[side])}"
    result = {"package": package, "wall_s": round(fastest[0], 3), "processor_s": round(fastest[1], 3)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

import numpy as np


def denoise(X, seed, k=10):
    size = X.sum(1, keepdims=True)
    roots = np.sqrt(X / np.maximum(size, 1))
    square = (roots**2).sum(1)
    distance = square[:, None] + square[None, :] - 2 * roots @ roots.T
    near = np.argsort(distance, axis=1)[:, : k + 1]
    return np.stack([X[row].mean(0) for row in near])

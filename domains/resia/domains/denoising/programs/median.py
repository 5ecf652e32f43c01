import numpy as np


def denoise(X, seed):
    size = X.sum(1, keepdims=True)
    return X / np.maximum(size, 1) * np.median(size)

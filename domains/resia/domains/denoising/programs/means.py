def denoise(X, seed):
    size = X.sum(1, keepdims=True)
    profile = X.sum(0) / X.sum()
    # Half a cell's own counts, half the profile of all cells at its size.
    return 0.5 * X + 0.5 * size * profile

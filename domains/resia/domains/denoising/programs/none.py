def denoise(X, seed):
    return X

"""Numbers drawn for the models of layers, and targets that depend on them."""

import numpy as np

Arrays = tuple[np.ndarray, ...]


def images() -> Arrays:
    """With sample weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 8, 8, 3)).astype("float32")
    return x, (x.mean(axis=(1, 2, 3)) > 0).astype("float32")[:, None], rng.uniform(0.5, 2, 240).astype("float32")


def sequences() -> Arrays:
    x = np.random.default_rng(1).integers(0, 11, (240, 9)).astype("int32")
    return x, x.sum(axis=1) % 4


def volumes() -> Arrays:
    x = np.random.default_rng(2).normal(size=(240, 4, 5, 6, 2)).astype("float32")
    return x, x.sum(axis=(1, 2, 3))


def joined() -> tuple[Arrays, Arrays]:
    x = np.random.default_rng(3).normal(size=(300, 6)).astype("float32")
    y = np.argmax(x[:, :3], axis=1)
    return (x[:240], y[:240]), (x[240:], y[240:])

"""Images of MNIST and their classes."""

import numpy as np
from models.mnist_convnet.data import read

Arrays = tuple[np.ndarray, np.ndarray]


def load() -> tuple[Arrays, Arrays]:
    """Return ((x, y), (x_test, y_test)): pixels [N, 28, 28, 1] in [-1, 1] and classes [N]."""
    (x, y), (x_test, y_test) = read("train", 3000), read("t10k", 500)
    return (2 * x - 1, y.argmax(axis=1)), (2 * x_test - 1, y_test.argmax(axis=1))

"""Images of MNIST, as keras.io prepares them, from the files of the package; fewer than there are."""

import gzip
from importlib.resources import files

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def load() -> tuple[Arrays, Arrays]:
    """Return ((x, y), (x_test, y_test)): pixels [N, 28, 28, 1] in [0, 1] and one-hot labels [N, 10]."""
    return read("train", 6000), read("t10k", 1000)


def read(which: str, count: int) -> Arrays:
    x = read_bytes(f"{which}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)[:count].astype("float32") / 255
    labels = read_bytes(f"{which}-labels-idx1-ubyte.gz", 8)[:count]
    return x, np.eye(10, dtype="float32")[labels]


def read_bytes(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((files("lit_mnist") / "mnist" / name).read_bytes()), np.uint8, offset=header)

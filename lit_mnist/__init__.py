"""The documented Keras MNIST classifier as a PyTorch Lightning project.

Dimension key, used in every shape comment of the package:
    N images in a batch, C channels, H rows, W columns, K = 10 classes, I inputs and O outputs of a layer.

Importing the package is light: torch is loaded when one of the names below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mnist.data import MNISTDataModule
    from lit_mnist.images import preprocess
    from lit_mnist.keras_files import read_keras_file
    from lit_mnist.load import load_model
    from lit_mnist.model import MNISTClassifier
    from lit_mnist.module import LitMNIST
    from lit_mnist.optim import KerasAdam, KerasAdamW

__version__ = "0.1.0"
__all__ = [
    "KerasAdam",
    "KerasAdamW",
    "LitMNIST",
    "MNISTClassifier",
    "MNISTDataModule",
    "__version__",
    "load_model",
    "preprocess",
    "read_keras_file",
]

_HOME = {
    "KerasAdam": "optim",
    "KerasAdamW": "optim",
    "LitMNIST": "module",
    "MNISTClassifier": "model",
    "MNISTDataModule": "data",
    "load_model": "load",
    "preprocess": "images",
    "read_keras_file": "keras_files",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"lit_mnist.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lit_mnist' has no attribute {name!r}")

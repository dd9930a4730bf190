"""The documented model as one reference among others: it is built, and its data scaled, as `keras_ref.train` does."""

from typing import Any

import keras
import numpy as np
from keras.utils import to_categorical

from keras_ref.data import MNIST, load_data, scale_pixels
from keras_ref.model import build_model
from keras_ref.trace.reference import Batch, Reference

REFERENCE = "keras_ref.model:build_model"


class Documented(Reference):
    """The documented model and MNIST, from files.

    Args:
        data_dir: directory of the data set.
        verify_data: whether it has to be MNIST.
    """

    accuracy = staticmethod(keras.metrics.categorical_accuracy)

    def __init__(self, data_dir: str, verify_data: bool = True) -> None:
        super().__init__(REFERENCE, "")
        self.data_dir, self.verify_data = data_dir, verify_data

    def examples(self) -> Any:
        return _Images(load_data(self.data_dir, self.verify_data))

    def build(self) -> keras.Model:
        return build_model()


class _Images:
    """Examples that are scaled and coded batch by batch, images as [N, 28, 28, 1] in [0, 1], labels as rows [N, 10]."""

    def __init__(self, mnist: MNIST) -> None:
        self.mnist = mnist

    def __len__(self) -> int:
        return len(self.mnist.train_images)

    def batch(self, rows: np.ndarray, dtype: str) -> Batch:
        return _prepared(self.mnist.train_images[rows], self.mnist.train_labels[rows], dtype)

    def test(self, dtype: str) -> Batch:
        return _prepared(self.mnist.test_images, self.mnist.test_labels, dtype)

    @property
    def tests(self) -> Batch:
        return (self.mnist.test_images, self.mnist.test_labels)


def _prepared(images: np.ndarray, labels: np.ndarray, dtype: str) -> Batch:
    return scale_pixels(images, dtype), to_categorical(labels, 10).astype(dtype)

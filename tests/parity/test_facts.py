"""What both sides are before they train: the same data, layers and start weights; and how Keras orders images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import GLOROT_BOUNDS, PARAMETERS, SHAPES_HWC

from keras_ref.parity.samples import kolmogorov_smirnov
from keras_ref.parity.sides import SEEDS
from keras_ref.parity.tolerances import KOLMOGOROV_SMIRNOV
from keras_ref.trace.trainings import training
from lit_mnist.data import one_hot, scale_pixels
from lit_mnist.errors import InputError
from lit_mnist.layout import WEIGHTS
from lit_mnist.mnist_files import read_files
from lit_mnist.trace.files import Arrays, digest


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_labels_pixels_and_one_hot_rows_equal_those_of_keras(split: str, keras_facts: Arrays) -> None:
    theirs = keras_facts
    images, labels = getattr(read_files("data"), split).tensors
    assert digest(images.numpy()[:, 0]) == theirs[f"{split}/images"]
    assert digest(labels.numpy().astype(np.uint8)) == theirs[f"{split}/labels"]
    assert digest(scale_pixels(images, torch.float32).movedim(1, -1).numpy()) == theirs[f"{split}/pixels"]
    assert digest(one_hot(labels, torch.float32).numpy()) == theirs[f"{split}/one_hot"]


def test_layers_parameter_counts_and_shapes_of_keras_match_the_documentation(keras_facts: Arrays) -> None:
    theirs = keras_facts
    assert dict(zip(theirs["layers"], theirs["parameters"], strict=True)) == PARAMETERS
    assert {name: tuple(theirs[f"shape/{name}"]) for name in theirs["layers"]} == SHAPES_HWC
    assert theirs["all_parameters"] == 152_006


@pytest.mark.parametrize(("layer", "bound"), GLOROT_BOUNDS.items())
def test_kernels_of_keras_are_glorot_uniform_and_biases_zero(layer: str, bound: float, keras_facts: Arrays) -> None:
    kernels = [keras_facts[f"initial/{seed}/{layer}/kernel"] for seed in range(SEEDS)]
    assert not any(keras_facts[f"initial/{seed}/{layer}/bias"].any() for seed in range(SEEDS))
    assert len({kernel.tobytes() for kernel in kernels}) == SEEDS
    sample = np.concatenate([kernel.ravel() for kernel in kernels])
    assert np.abs(sample).max() <= bound * (1 + 1e-6)
    uniform = np.random.default_rng(0).uniform(-bound, bound, len(sample))
    assert kolmogorov_smirnov(sample, uniform) < KOLMOGOROV_SMIRNOV


def test_keras_too_has_another_order_in_each_epoch_unless_tensorflow_is_seeded(keras_facts: Arrays) -> None:
    theirs = keras_facts
    for order in (*theirs["order"], *theirs["order_with_a_global_seed"]):
        assert sorted(order) == list(range(1_050))
    assert len({order.tobytes() for order in theirs["order"]}) == 10
    # What keeps keras_ref.train from calling keras.utils.set_random_seed; it may once this fails.
    assert len({order.tobytes() for order in theirs["order_with_a_global_seed"]}) == 1


def test_a_number_of_steps_that_is_no_whole_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--steps 700: expected at most 600, or whole epochs"):
        training("long", "float64", 0, 700, "data", tmp_path, WEIGHTS)

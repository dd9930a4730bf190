"""Weights in Keras' layout, into the model and back."""

import numpy as np
import pytest
import reference
import torch

from lit_mnist import MNISTClassifier
from lit_mnist.layout import WEIGHTS
from lit_mnist.weights import activation_to_keras, from_keras, to_keras


def draw(dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.normal(0, 0.1, shape).astype(dtype) for key, shape in WEIGHTS.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back_is_the_same_bits_and_the_source_is_untouched(dtype: str) -> None:
    arrays = draw(dtype)
    before = {key: array.copy() for key, array in arrays.items()}
    tensors = from_keras(arrays)
    back = to_keras(tensors)
    assert list(back) == list(WEIGHTS)
    for tensor in tensors.values():
        tensor.zero_()
    for key in WEIGHTS:
        assert back[key].dtype == dtype
        np.testing.assert_array_equal(back[key], before[key])
        np.testing.assert_array_equal(arrays[key], before[key])


def test_the_model_computes_what_keras_formulas_say_of_the_same_arrays() -> None:
    arrays = draw("float64")
    model = MNISTClassifier().double()
    model.load_state_dict(from_keras(arrays))
    images = np.random.default_rng(1).random((5, 28, 28, 1))
    logits = model(torch.from_numpy(images).movedim(-1, 1)).detach().numpy()
    np.testing.assert_allclose(logits, reference.logits(images, arrays), rtol=0, atol=1e-13)


def test_activations_are_put_in_keras_order() -> None:
    maps = torch.arange(2 * 1176).reshape(2, 6, 14, 14)
    np.testing.assert_array_equal(activation_to_keras(maps), maps.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(
        activation_to_keras(maps.flatten(1)), maps.numpy().transpose(0, 2, 3, 1).reshape(2, 1176)
    )


def drop_a_key(arrays: dict[str, np.ndarray]) -> None:
    del arrays["output/bias"]


def transpose(arrays: dict[str, np.ndarray]) -> None:
    arrays["output/kernel"] = arrays["output/kernel"].T


def add_a_key(arrays: dict[str, np.ndarray]) -> None:
    arrays["extra/bias"] = np.zeros(3)


@pytest.mark.parametrize(
    ("change", "named"), [(drop_a_key, "output/bias"), (transpose, "output/kernel"), (add_a_key, "extra/bias")]
)
def test_wrong_weights_are_named(change: object, named: str) -> None:
    arrays = draw("float32")
    change(arrays)
    with pytest.raises(ValueError, match=f"{named} is"):
        from_keras(arrays)

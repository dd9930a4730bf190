"""Record facts of the Keras side for tests that run with torch: python tests/keras_facts.py OUT.npz."""

import hashlib
import random
import sys

import numpy as np

from keras_ref.data import load_data, scale_pixels
from keras_ref.quiet import import_keras

SEEDS = 20


def main(path: str) -> None:
    import_keras()
    import keras

    from keras_ref.model import build_model

    facts: dict[str, np.ndarray] = {}
    model = build_model()
    facts["layers"] = np.array([layer.name for layer in model.layers])
    facts["parameters"] = np.array([layer.count_params() for layer in model.layers])
    for layer in model.layers:
        facts[f"shape/{layer.name}"] = np.array(layer.output.shape[1:])

    mnist = load_data()
    for split, images, labels in (
        ("train", mnist.train_images, mnist.train_labels),
        ("test", mnist.test_images, mnist.test_labels),
    ):
        facts[f"{split}/images"] = sha256(images)
        facts[f"{split}/labels"] = sha256(labels)
        facts[f"{split}/pixels"] = sha256(scale_pixels(images))
        facts[f"{split}/one_hot"] = sha256(keras.utils.to_categorical(labels, 10).astype("float32"))

    for seed in range(SEEDS):
        random.seed(seed)  # as keras_ref.train does
        for variable in build_model().trainable_variables:
            _, layer, name = variable.path.split("/")
            facts[f"initial/{seed}/{layer}/{name}"] = variable.numpy()

    for name, set_seed in (("python", random.seed), ("keras", keras.utils.set_random_seed)):
        set_seed(0)
        facts[f"order/{name}"] = order_of_images(images=500, epochs=3)
    np.savez(path, **facts)


def order_of_images(images: int, epochs: int) -> np.ndarray:
    """Return the order in which `fit` goes through its images, [epochs, images]."""
    import keras

    seen: list[np.ndarray] = []

    class Watch(keras.Model):
        def train_step(self, data: tuple) -> dict:
            seen.append(data[0].numpy()[:, 0])
            return {"loss": 0.0}

    numbers = np.arange(images)[:, None]
    model = Watch()
    model.compile(run_eagerly=True)
    model.fit(numbers, numbers, epochs=epochs, batch_size=100, verbose=0)
    return np.concatenate(seen).reshape(epochs, images)


def sha256(array: np.ndarray) -> np.ndarray:
    return np.array(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])

"""What the original is before it trains: its data, its layers, its start weights."""

import random
from typing import Any

import numpy as np

from keras_ref.data import load_data, scale_pixels
from lit_mnist.trace.files import digest


def record_facts(data_dir: str, seeds: int) -> dict[str, np.ndarray]:
    """Return the facts that `lit_mnist.trace.recording.record_facts` returns of a port; it describes them."""
    import keras

    from keras_ref.model import build_model

    keras.backend.clear_session()  # a training in 64 bits before has left its dtype policy, which floatx leaves alone
    keras.config.set_floatx("float32")
    model = build_model()
    recorded = {
        "layers": np.array([layer.name for layer in model.layers]),
        "parameters": np.array([layer.count_params() for layer in model.layers]),
    }
    recorded["all_parameters"] = np.array(model.count_params())
    for layer in model.layers:
        recorded[f"shape/{layer.name}"] = np.array(layer.output.shape[1:])

    mnist = load_data(data_dir)
    for split, images, labels in (
        ("train", mnist.train_images, mnist.train_labels),
        ("test", mnist.test_images, mnist.test_labels),
    ):
        recorded[f"{split}/images"] = digest(images)
        recorded[f"{split}/labels"] = digest(labels)
        recorded[f"{split}/pixels"] = digest(scale_pixels(images))
        recorded[f"{split}/one_hot"] = digest(keras.utils.to_categorical(labels, 10).astype("float32"))

    for seed in range(seeds):
        random.seed(seed)  # as keras_ref.train does
        for variable in build_model().trainable_variables:
            _, layer, name = variable.path.split("/")
            recorded[f"initial/{seed}/{layer}/{name}"] = variable.numpy()

    random.seed(0)
    recorded["images"] = np.array(1_050)
    recorded["order"], recorded["batch_sizes"] = order_of_images(images=1_050, epochs=10)
    recorded["documented_batch_sizes"] = recorded["batch_sizes"]
    keras.utils.set_random_seed(0)
    recorded["order_with_a_global_seed"], _ = order_of_images(images=1_050, epochs=3)
    return recorded


def order_of_images(images: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Watch `fit` go through numbered images, 100 a batch.

    Returns:
        The order of the images in each epoch, [epochs, images], and the sizes of the batches of one epoch.
    """
    import keras

    seen: list[np.ndarray] = []

    class Watch(keras.Model):  # type: ignore[misc]  # keras has no types
        def train_step(self, data: tuple[Any, Any]) -> dict[str, float]:
            seen.append(data[0].numpy()[:, 0])
            return {"loss": 0.0}

    numbers = np.arange(images)[:, None]
    model = Watch()
    model.compile(run_eagerly=True)
    model.fit(numbers, numbers, epochs=epochs, batch_size=100, verbose=0)
    sizes = np.array([len(batch) for batch in seen[: len(seen) // epochs]])
    return np.concatenate(seen).reshape(epochs, images), sizes

"""What `keras_ref.parity` asks the original's side for: functions that return arrays."""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.data import load_data, scale_pixels
from keras_ref.quiet import import_keras
from lit_mnist.trace.files import TraceInputs, digest

import_keras()

import keras  # noqa: E402  # quietly

from keras_ref.model import build_model  # noqa: E402
from keras_ref.trace import trainings  # noqa: E402
from keras_ref.trace.training import Progress, key, save_model, trace_training  # noqa: E402
from keras_ref.train import train  # noqa: E402


def facts(progress: Progress, data_dir: str, seeds: int) -> dict[str, np.ndarray]:
    """Return the facts that `lit_mnist.trace.requests.facts` returns of a port; it describes them.

    And `steps` of the documented training.
    """
    keras.backend.clear_session()  # a training in 64 bits before has left its dtype policy, which floatx leaves alone
    keras.config.set_floatx("float32")
    model = build_model()
    arrays = {
        "layers": np.array([layer.name for layer in model.layers]),
        "parameters": np.array([layer.count_params() for layer in model.layers]),
        "all_parameters": np.array(model.count_params()),
        "steps": np.array(trainings.STEPS),
    } | {f"shape/{layer.name}": np.array(layer.output.shape[1:]) for layer in model.layers}

    mnist = load_data(data_dir)
    for split, images, labels in (
        ("train", mnist.train_images, mnist.train_labels),
        ("test", mnist.test_images, mnist.test_labels),
    ):
        arrays[f"{split}/images"] = digest(images)
        arrays[f"{split}/labels"] = digest(labels)
        arrays[f"{split}/pixels"] = digest(scale_pixels(images))
        arrays[f"{split}/one_hot"] = digest(keras.utils.to_categorical(labels, 10).astype("float32"))

    for seed in range(seeds):
        random.seed(seed)  # as keras_ref.train does
        for variable in build_model().trainable_variables:
            arrays[f"initial/{seed}/{key(variable)}"] = variable.numpy()

    random.seed(0)
    arrays["images"] = np.array(1_050)
    arrays["order"], arrays["batch_sizes"] = order_of_images(images=1_050, epochs=10)
    arrays["documented_batch_sizes"] = arrays["batch_sizes"]
    keras.utils.set_random_seed(0)
    arrays["order_with_a_global_seed"], _ = order_of_images(images=1_050, epochs=3)
    return arrays


def order_of_images(images: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Watch `fit` go through numbered images, 100 a batch.

    Returns:
        The order of the images in each epoch, [epochs, images], and the sizes of the batches of one epoch.
    """
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


def inputs(
    progress: Progress, training: str, dtype: str, seed: int, steps: int, data_dir: str, directory: str
) -> dict[str, np.ndarray]:
    """Return what a training starts from, as `TraceInputs.arrays` does."""
    shapes = {key(variable): tuple(variable.shape) for variable in build_model().trainable_variables}
    return trainings.training(training, dtype, seed, steps, data_dir, Path(directory), shapes).arrays()


def trace(progress: Progress, inputs: str) -> dict[str, np.ndarray]:
    """Return the trace of a training that is given in a file."""
    return trace_training(TraceInputs.read(Path(inputs)), progress)


def save(progress: Progress, inputs: str, directory: str) -> dict[str, np.ndarray]:
    """Save the model with the weights of a training, as Keras saves it, in a directory."""
    save_model(TraceInputs.read(Path(inputs)), Path(directory))
    return {}


def results(progress: Progress, data_dir: str, seed: int) -> dict[str, np.ndarray]:
    """Return what a whole training from a seed comes to."""
    with tempfile.TemporaryDirectory() as directory:
        summary = train(seed=seed, data_dir=data_dir, output_dir=directory)
    return {name: np.asarray(summary[name]) for name in ("test_accuracy", "test_loss")}

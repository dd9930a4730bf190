"""Train Keras on given batches from given weights through `fit`, and keep what can be compared."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.utils import to_categorical

from keras_ref.data import load_data, scale_pixels
from keras_ref.model import build_model
from lit_mnist.errors import InputError
from lit_mnist.runs.files import versions
from lit_mnist.trace.files import Arrays, TraceInputs

Progress = Callable[[int, int], None]  # is given the steps done and their number
Batch = tuple[np.ndarray, np.ndarray]  # images [N, 28, 28, 1] in [0, 1], one-hot labels [N, 10]


def trace_training(given: TraceInputs, progress: Progress | None = None) -> dict[str, np.ndarray]:
    """Train as given and return all that can be compared, keyed as in a trace's output file.

    Raises:
        InputError: if the weights are not those of the documented model, or there is no such image.
    """
    keras.backend.clear_session()  # one training after another in one process
    keras.config.set_floatx(given.dtype)
    mnist = load_data(given.data_dir, given.verify_data)
    given.check_images(len(mnist.train_images))
    labels = to_categorical(mnist.train_labels, 10).astype(given.dtype)  # [60000, 10]
    test_images = scale_pixels(mnist.test_images, given.dtype)  # [10000, 28, 28, 1]
    test_labels = to_categorical(mnist.test_labels, 10).astype(given.dtype)  # [10000, 10]

    def batch(step: int) -> Batch:
        rows = given.batches[step][given.batches[step] >= 0]
        return scale_pixels(mnist.train_images[rows], given.dtype), labels[rows]

    def batches() -> Iterator[Batch]:
        return (batch(step) for step in range(len(given.batches)))

    model = build_model()
    model.optimizer.learning_rate = given.learning_rate
    model.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        metrics=[
            "accuracy",
            LastBatch(keras.losses.categorical_crossentropy, "last_loss", given.dtype),
            LastBatch(keras.metrics.categorical_accuracy, "last_accuracy", given.dtype),
        ],
    )
    load(model, given.weights)
    loaded = {f"loaded/{key(variable)}": variable.numpy() for variable in model.trainable_variables}
    trace = StepTrace(model, batch, given, progress)
    signature = (tf.TensorSpec((None, 28, 28, 1), given.dtype), tf.TensorSpec((None, 10), given.dtype))
    fitted = model.fit(
        tf.data.Dataset.from_generator(batches, output_signature=signature),
        epochs=given.epochs,
        steps_per_epoch=given.steps_per_epoch,
        callbacks=[trace],
        shuffle=False,
        verbose=0,
    )
    arrays = loaded | trace.kept | state(model, "")
    arrays |= {"loss": np.array(trace.losses), "accuracy": np.array(trace.accuracies)}
    arrays |= {f"history/{name}": np.array(fitted.history[name]) for name in ("loss", "accuracy")}
    arrays["probabilities"] = model.predict(test_images, batch_size=1000, verbose=0)
    tested = model.evaluate(test_images, test_labels, batch_size=1000, verbose=0, return_dict=True)
    arrays |= {f"history/test_{name}": np.array([tested[name]]) for name in ("loss", "accuracy")}
    arrays["run_id"] = np.asarray(given.run_id)
    arrays["versions"] = np.asarray(json.dumps(versions("keras", "tensorflow", "numpy")))
    return arrays


def save_model(given: TraceInputs, directory: Path) -> None:
    """Save the model with the given weights as Keras saves it: `model.keras` and `model.weights.h5`."""
    keras.config.set_floatx(given.dtype)
    model = build_model()
    load(model, given.weights)
    directory.mkdir(exist_ok=True)
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")


def load(model: keras.Model, weights: Arrays) -> None:
    """Set the weights of a model.

    Raises:
        InputError: if they are not its own.
    """
    shapes = {key(variable): tuple(variable.shape) for variable in model.trainable_variables}
    for name in sorted(shapes.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != shapes.get(name):
            raise InputError(f"weights: {name} is {found}, expected {shapes.get(name)}")
    for variable in model.trainable_variables:
        variable.assign(weights[key(variable)])


def key(variable: Any) -> str:
    """Return the name of a weight in files, as in hidden/kernel."""
    return "/".join(variable.path.split("/")[-2:])


def state(model: keras.Model, prefix: str) -> dict[str, np.ndarray]:
    """Return the weights of a model and the moments of its Adam."""
    arrays = {f"{prefix}weights/{key(variable)}": variable.numpy() for variable in model.trainable_variables}
    for name in map(key, model.trainable_variables):
        for kind, slot in (("adam_m", "momentum"), ("adam_v", "velocity")):
            ending = f"_{name.replace('/', '_')}_{slot}"  # as in adam/sequential_hidden_kernel_momentum
            (variable,) = (variable for variable in model.optimizer.variables if variable.path.endswith(ending))
            arrays[f"{prefix}{kind}/{name}"] = variable.numpy()
    return arrays


class LastBatch(keras.metrics.Metric):  # type: ignore[misc]  # keras has no types
    """The value of a function for the last batch alone; Keras' own metrics run on over the epoch."""

    def __init__(self, function: Any, name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype)
        self.function = function
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.value.assign(keras.ops.mean(self.function(y_true, y_pred)))

    def result(self) -> Any:
        return self.value

    def reset_state(self) -> None:
        pass


class StepTrace(keras.callbacks.Callback):  # type: ignore[misc]
    """Keep the loss and the accuracy of every batch before its update, and more of the steps that are asked for."""

    def __init__(
        self, model: keras.Model, batch: Callable[[int], Batch], given: TraceInputs, progress: Progress | None
    ) -> None:
        super().__init__()
        self.batch, self.given, self.progress = batch, given, progress
        self.layers = keras.Model(model.inputs[0], {layer.name: layer.output for layer in model.layers})
        self.kept: dict[str, np.ndarray] = {}
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def on_train_batch_begin(self, batch_index: int, logs: Any = None) -> None:
        step = len(self.losses)
        if step == 0:
            self.kept |= self.activations("activations", self.batch(0)[0])
        if step in self.given.record_at:
            x, y = self.batch(step)
            self.kept |= self.activations(f"activations/{step}", x)
            with tf.GradientTape() as tape:
                loss = self.model.compute_loss(x=x, y=y, y_pred=self.model(x, training=True))
            gradients = tape.gradient(loss, self.model.trainable_variables)
            for variable, gradient in zip(self.model.trainable_variables, gradients, strict=True):
                self.kept[f"gradients/{step}/{key(variable)}"] = gradient.numpy()

    def on_train_batch_end(self, batch_index: int, logs: Any = None) -> None:
        if len(self.losses) in self.given.record_at:
            self.kept |= state(self.model, f"after/{len(self.losses)}/")
        self.losses.append(float(logs["last_loss"]))
        self.accuracies.append(float(logs["last_accuracy"]))
        if self.progress:
            self.progress(len(self.losses), len(self.given.batches))

    def activations(self, prefix: str, images: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{prefix}/{name}": tensor.numpy() for name, tensor in self.layers(images).items()}

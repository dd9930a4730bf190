"""python -m keras_ref.trace: train Keras on given batches from given weights; record all that can be compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.data import load_data, scale_pixels
from keras_ref.quiet import import_keras
from lit_mnist.errors import InputError
from lit_mnist.runs.command import run
from lit_mnist.runs.directory import versions
from lit_mnist.trace.files import WEIGHTS, TraceInputs, write_arrays
from lit_mnist.trace.jobs import Tell


def trace(inputs: str, output: str) -> None:
    """Train the documented Keras model on given batches from given weights and record every step.

    The training is the real one: the compiled model and its fit. Only the start weights and the order of the images
    are given instead of drawn. lit_mnist.trace does the same in PyTorch Lightning.

    Args:
        inputs: File (.npz) with start weights, batches and settings, as lit_mnist.trace.files describes it.
        output: File (.npz) to write.
    """
    given = TraceInputs.read(Path(inputs))
    import_keras()
    write_arrays(Path(output), record(given))


def record(given: TraceInputs, tell: Tell | None = None) -> dict[str, np.ndarray]:
    """Train as given and return all that was recorded, keyed as in a trace's output file."""
    import keras
    import tensorflow as tf
    from keras.utils import to_categorical

    from keras_ref.model import build_model

    keras.backend.clear_session()  # a worker records one training after another
    keras.config.set_floatx(given.dtype)
    mnist = load_data(given.data_dir, given.verify_data)
    images, test_images = mnist.train_images, scale_pixels(mnist.test_images, given.dtype)
    labels = to_categorical(mnist.train_labels, 10).astype(given.dtype)  # [60000, 10]
    test_labels = to_categorical(mnist.test_labels, 10).astype(given.dtype)  # [10000, 10]
    if given.batches.max() >= len(images):
        raise InputError(f"--inputs: batches names image {given.batches.max()}; there are {len(images)}")

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = given.batches[step][given.batches[step] >= 0]
        return scale_pixels(images[rows], given.dtype), labels[rows]  # [N, 28, 28, 1], [N, 10]

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (batch(step) for step in range(len(given.batches)))

    class LastBatch(keras.metrics.Metric):  # type: ignore[misc]  # keras has no types
        """The value of a function for the last batch alone; Keras' own metrics run on over the epoch."""

        def __init__(self, function: Any, name: str) -> None:
            super().__init__(name=name, dtype=given.dtype)
            self.function = function
            self.value = self.add_variable((), "zeros", name="value")

        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            self.value.assign(keras.ops.mean(self.function(y_true, y_pred)))

        def result(self) -> Any:
            return self.value

        def reset_state(self) -> None:
            pass

    class Recorder(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.arrays: dict[str, np.ndarray] = {}
            self.loss: list[float] = []
            self.accuracy: list[float] = []

        def on_train_batch_begin(self, batch_index: int, logs: Any = None) -> None:
            step = len(self.loss)
            if step == 0:
                first = layers(batch(0)[0])
                self.arrays |= {f"activations/{name}": array.numpy() for name, array in first.items()}
            if step in given.record_at:
                x, y = batch(step)
                self.arrays |= {f"activations/{step}/{name}": array.numpy() for name, array in layers(x).items()}
                with tf.GradientTape() as tape:
                    loss = self.model.compute_loss(x=x, y=y, y_pred=self.model(x, training=True))
                gradients = tape.gradient(loss, self.model.trainable_variables)
                for variable, gradient in zip(self.model.trainable_variables, gradients, strict=True):
                    self.arrays[f"gradients/{step}/{key(variable)}"] = gradient.numpy()

        def on_train_batch_end(self, batch_index: int, logs: Any = None) -> None:
            if len(self.loss) in given.record_at:
                self.arrays |= state(f"after/{len(self.loss)}/")
            self.loss.append(float(logs["last_loss"]))
            self.accuracy.append(float(logs["last_accuracy"]))
            if tell:
                tell(len(self.loss), len(given.batches))

    def state(prefix: str) -> dict[str, np.ndarray]:
        arrays = {f"{prefix}weights/{key(variable)}": variable.numpy() for variable in model.trainable_variables}
        for name in WEIGHTS:
            for kind, slot in (("adam_m", "momentum"), ("adam_v", "velocity")):
                ending = f"_{name.replace('/', '_')}_{slot}"  # as in adam/sequential_hidden_kernel_momentum
                (variable,) = (variable for variable in model.optimizer.variables if variable.path.endswith(ending))
                arrays[f"{prefix}{kind}/{name}"] = variable.numpy()
        return arrays

    model = build_model()
    model.optimizer.learning_rate = given.learning_rate
    model.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        metrics=[
            "accuracy",
            LastBatch(keras.losses.categorical_crossentropy, "last_loss"),
            LastBatch(keras.metrics.categorical_accuracy, "last_accuracy"),
        ],
    )
    for variable in model.trainable_variables:
        variable.assign(given.weights[key(variable)])

    loaded = {f"loaded/{key(variable)}": variable.numpy() for variable in model.trainable_variables}
    layers = keras.Model(model.inputs[0], {layer.name: layer.output for layer in model.layers})
    recorder = Recorder()
    signature = (
        tf.TensorSpec((None, 28, 28, 1), given.dtype),
        tf.TensorSpec((None, 10), given.dtype),
    )
    fitted = model.fit(
        tf.data.Dataset.from_generator(batches, output_signature=signature),
        epochs=given.epochs,
        steps_per_epoch=given.steps_per_epoch,
        callbacks=[recorder],
        shuffle=False,
        verbose=0,
    )
    recorded = loaded | recorder.arrays | state("")
    recorded |= {"loss": np.array(recorder.loss), "accuracy": np.array(recorder.accuracy)}
    recorded |= {f"history/{name}": np.array(fitted.history[name]) for name in ("loss", "accuracy")}
    recorded["probabilities"] = model.predict(test_images, batch_size=1000, verbose=0)
    tested = model.evaluate(test_images, test_labels, batch_size=1000, verbose=0, return_dict=True)
    recorded |= {f"history/test_{name}": np.array([tested[name]]) for name in ("loss", "accuracy")}
    recorded["run_id"] = np.asarray(given.run_id)
    recorded["versions"] = np.asarray(json.dumps(versions("keras", "tensorflow", "numpy")))
    return recorded


def key(variable: Any) -> str:
    """Return the name of a weight in files, as in hidden/kernel."""
    return "/".join(variable.path.split("/")[-2:])


def save_model(given: TraceInputs, directory: Path) -> None:
    """Save the model with the given weights as Keras saves it: `model.keras` and `model.weights.h5`."""
    import keras

    from keras_ref.model import build_model

    keras.config.set_floatx(given.dtype)
    model = build_model()
    for variable in model.trainable_variables:
        variable.assign(given.weights[key(variable)])
    directory.mkdir(exist_ok=True)
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")


if __name__ == "__main__":
    run(trace, prog="python -m keras_ref.trace")

"""What `keras_ref.parity` asks the original's side for: functions that return arrays."""

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.data import load_data, scale_pixels
from keras_ref.quiet import import_keras
from lit_mnist.errors import InputError
from lit_mnist.trace.arrays import row_digests
from lit_mnist.trace.files import TraceInputs, digest, dropout_examples, dropout_facts
from lit_mnist.trace.frameworks import refuse

BACKEND = os.environ["KERAS_BACKEND"]  # which `keras_ref.parity.processes` sets
OTHERS = ("tensorflow", "lightning") if BACKEND == "torch" else ("torch", "lightning")
refuse(*OTHERS, message=f"the original and its data are in a process of Keras: import no {OTHERS[0]} there")
import_keras(BACKEND)

import keras  # noqa: E402  # quietly

from keras_ref.trace import trainings  # noqa: E402
from keras_ref.trace.description import describe, keys  # noqa: E402
from keras_ref.trace.documented import Documented  # noqa: E402
from keras_ref.trace.plan import plan  # noqa: E402
from keras_ref.trace.reference import Reference  # noqa: E402
from keras_ref.trace.training import Progress, sample_weights, save_model, trace_training  # noqa: E402
from keras_ref.train import train  # noqa: E402


def facts(progress: Progress, reference: str, data: str, data_dir: str, seeds: int) -> dict[str, np.ndarray]:
    """Return what the original is before it trains.

    Returns:
        `model`, the description of it as JSON; `layers` and `parameters`, names and numbers; `all_parameters`;
        `shape/<layer>`; `initial/<seed>/<key>`. Of the documented model what `_documented` adds; of others
        `examples/...`, what their data are, `trained/<layer>` and `all_trained`, how many numbers are trained, and
        `drop/<layer>`, what its Dropout layers make of ones (`dropout_facts`).
    """
    keras.backend.clear_session()  # a training in 64 bits before has left its dtype policy, which floatx leaves alone
    keras.config.set_floatx("float32")
    original = resolve(reference, data, data_dir)
    model = original.build()
    described = describe(model, original.model)
    if not isinstance(original, Documented):
        _check_inputs(model, original.examples().arrays[0], data)
    layers = described["layers"]
    arrays = {
        "model": np.array(json.dumps(described)),
        "layers": np.array([layer["name"] for layer in layers]),
        "parameters": np.array([sum(int(np.prod(w["shape"])) for w in layer["weights"]) for layer in layers]),
        "all_parameters": np.array(model.count_params()),
    } | {f"shape/{layer['name']}": np.array(layer["shape"]) for layer in layers if layer["recorded"]}
    for seed in range(seeds):
        random.seed(seed)  # as keras_ref.train does
        for name, variable in keys(original.build()).items():
            arrays[f"initial/{seed}/{name}"] = variable.numpy()
    if isinstance(original, Documented):
        return arrays | _documented(data_dir)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            arrays[f"drop/{layer.name}"] = _dropped(layer)
    for layer in layers:
        trained = [int(np.prod(weight["shape"])) for weight in layer["weights"] if weight["trainable"]]
        arrays[f"trained/{layer['name']}"] = np.array(sum(trained))
    arrays["all_trained"] = np.array(sum(int(np.prod(v.shape)) for v in model.trainable_variables))
    return arrays | original.examples().digests()


def _check_inputs(model: keras.Model, inputs: np.ndarray, data: str) -> None:
    expected, given = model.input_shape[1:], inputs.shape[1:]
    if len(expected) != len(given) or any(e not in (None, g) for e, g in zip(expected, given, strict=True)):
        shapes = [f"[{', '.join(map(str, ('N', *shape)))}]" for shape in (given, expected)]
        raise InputError(f"--data {data}: x is {shapes[0]}; the input of the model is {shapes[1]}")


def _dropped(layer: Any) -> np.ndarray:
    shape = dropout_examples(layer.input.shape[1:])
    return dropout_facts(np.asarray(layer(np.ones(shape, "float32"), training=True)))


def _documented(data_dir: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"steps": np.array(trainings.STEPS)}
    mnist = load_data(data_dir)
    for split, images, labels in (
        ("train", mnist.train_images, mnist.train_labels),
        ("test", mnist.test_images, mnist.test_labels),
    ):
        arrays[f"{split}/images"] = digest(images)
        arrays[f"{split}/labels"] = digest(labels)
        arrays[f"{split}/pixels"] = digest(scale_pixels(images))
        arrays[f"{split}/one_hot"] = digest(keras.utils.to_categorical(labels, 10).astype("float32"))
    random.seed(0)
    arrays["images"] = np.array(1_050)
    arrays["order"], arrays["batch_sizes"] = order_of_images(images=1_050, epochs=10)
    arrays["documented_batch_sizes"] = arrays["batch_sizes"]
    keras.utils.set_random_seed(0)
    arrays["order_with_a_global_seed"], _ = order_of_images(images=1_050, epochs=3)
    return arrays


def rows(progress: Progress, reference: str, data: str, data_dir: str) -> dict[str, np.ndarray]:
    """Return a number for each training example, the same for the same numbers: `rows/inputs` and `rows/targets`."""
    examples = resolve(reference, data, data_dir).examples()
    inputs, targets = examples.batch(np.arange(len(examples)), "float32")[:2]
    return {"rows/inputs": row_digests((inputs,)), "rows/targets": row_digests((targets,))}


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
    progress: Progress,
    reference: str,
    data: str,
    training: str,
    dtype: str,
    seed: int,
    steps: int,
    batch_size: int,
    data_dir: str,
    directory: str,
) -> dict[str, np.ndarray]:
    """Return what a training starts from, as `TraceInputs.arrays` does."""
    original = resolve(reference, data, data_dir)
    keras.backend.clear_session()
    keras.config.set_floatx("float32")
    random.seed(seed)
    weights = {name: variable.numpy() for name, variable in keys(original.build()).items()}
    if isinstance(original, Documented):
        shapes = {name: array.shape for name, array in weights.items()}
        return trainings.training(training, dtype, seed, steps, data_dir, Path(directory), shapes).arrays()
    return plan(training, dtype, seed, steps, batch_size, len(original.examples()), weights).arrays()


def trace(
    progress: Progress, reference: str, data: str, data_dir: str, inputs: str, exact: int
) -> dict[str, np.ndarray]:
    """Return the trace of a training that is given in a file; `exact` says whether constants keep their bits."""
    given = TraceInputs.read(Path(inputs))
    original = None if not data else resolve(reference, data, data_dir)
    return trace_training(given, progress, original, exact=bool(exact))


def save(
    progress: Progress, reference: str, data: str, data_dir: str, inputs: str, directory: str
) -> dict[str, np.ndarray]:
    """Save the documented model with the weights of a training, as Keras saves it, in a directory."""
    save_model(TraceInputs.read(Path(inputs)), Path(directory))
    return {}


def results(
    progress: Progress, reference: str, data: str, data_dir: str, seed: int, epochs: int = 10, batch_size: int = 100
) -> dict[str, np.ndarray]:
    """Return what a training from start weights and in an order of its own comes to: `test_loss` and the metrics."""
    if data:
        return _free_training(resolve(reference, data, data_dir), seed, epochs, batch_size)
    with tempfile.TemporaryDirectory() as directory:
        summary = train(seed=seed, data_dir=data_dir, output_dir=directory)
    return {name: np.asarray(summary[name]) for name in ("test_accuracy", "test_loss")}


def _free_training(original: Reference, seed: int, epochs: int, batch_size: int) -> dict[str, np.ndarray]:
    """Return `test_loss` and the metrics of the tests; nothing if there are none."""
    keras.backend.clear_session()
    keras.config.set_floatx("float32")
    random.seed(seed)
    model, examples = original.build(), original.examples()
    if examples.tests is None:
        return {}
    # x, y and, where there are any, sample weights; the order is TensorFlow's own, as in keras_ref.train.
    inputs, *targets = examples.batch(np.arange(len(examples)), "float32")
    model.fit(inputs, targets[0], epochs=epochs, batch_size=batch_size, verbose=0, **sample_weights(targets))
    inputs, *targets = examples.test("float32")
    tested = model.evaluate(inputs, targets[0], batch_size=1000, verbose=0, return_dict=True, **sample_weights(targets))
    return {f"test_{name}": np.array(value) for name, value in tested.items()}


def resolve(reference: str, data: str, data_dir: str) -> Reference:
    """Return the reference that is named; the documented one if no data are.

    Raises:
        InputError: if another model is to be trained on the documented data.
    """
    documented = Documented(data_dir)
    if data:
        return Reference(reference, data)
    if reference and reference != documented.model:
        raise InputError(f"--reference {reference}: give its --data, too")
    return documented

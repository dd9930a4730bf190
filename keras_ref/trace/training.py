"""Train Keras on given batches from given weights through `fit`, and keep what can be compared."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ref.trace.description import keys, recorded
from keras_ref.trace.documented import Documented
from keras_ref.trace.gradients import gradients
from keras_ref.trace.reference import Batch, Reference
from lit_mnist.errors import InputError
from lit_mnist.runs.files import versions
from lit_mnist.trace.arrays import Examples
from lit_mnist.trace.files import Arrays, TraceInputs, dropout_mask

Progress = Callable[[int, int], None]  # is given the steps done and their number

# The names of an optimizer's slots in files, by Keras' names.
SLOTS = {
    ("Adam", "momentum"): "adam_m",
    ("Adam", "velocity"): "adam_v",
    ("AdamW", "momentum"): "adam_m",
    ("AdamW", "velocity"): "adam_v",
}
KEPT_SLOTS = ("momentum", "velocity", "velocity_hat", "accumulator", "average_gradient", "average")


def trace_training(
    given: TraceInputs, progress: Progress | None = None, reference: Reference | None = None, exact: bool = False
) -> dict[str, np.ndarray]:
    """Train as given and return all that can be compared, keyed as in a trace's output file.

    Args:
        given: the training.
        progress: is given the steps done and their number.
        reference: the model and its data; the documented ones by default.
        exact: whether Python's numbers keep their bits (see `unrounded`).

    Raises:
        InputError: if the weights are not those of the model, or there is no such example.
    """
    reference = reference or Documented(given.data_dir, given.verify_data)
    keras.backend.clear_session()  # one training after another in one process
    keras.config.set_floatx(given.dtype)
    examples = reference.examples()
    given.check_images(len(examples))

    def batch(step: int) -> Batch:
        return examples.batch(given.batches[step][given.batches[step] >= 0], given.dtype)

    def batches() -> Iterator[Batch]:
        return (batch(step) for step in range(len(given.batches)))

    with _constants(exact):
        model = reference.build()
        if given.learning_rate is not None:
            model.optimizer.learning_rate = given.learning_rate
        if reference.accuracy:
            last_accuracy = LastBatch(reference.accuracy, "last_accuracy", given.dtype)
            model.compile(optimizer=model.optimizer, loss=model.loss, metrics=["accuracy", last_accuracy])
        variables = keys(model)
        load(variables, given.weights)
        loaded = {f"loaded/{name}": variable.numpy() for name, variable in variables.items()}
        trace = StepTrace(model, variables, batch, given, progress)
        fitted = model.fit(
            batches(),
            epochs=given.epochs,
            steps_per_epoch=given.steps_per_epoch,
            callbacks=[trace],
            shuffle=False,
            verbose=0,
        )
        arrays = loaded | trace.kept | state(model, variables, "") | {"loss": np.array(trace.losses)}
        if reference.accuracy:
            arrays["accuracy"] = np.array(trace.accuracies)
        reported = [name for name in fitted.history if name != "last_accuracy"]
        arrays |= {f"history/{name}": np.array(fitted.history[name]) for name in reported}
        if not given.hold:
            arrays |= _tested(model, examples, given.dtype, reported)
    arrays["run_id"] = np.asarray(given.run_id)
    arrays["versions"] = np.asarray(json.dumps(versions("keras", keras.backend.backend(), "numpy")))
    return arrays


def _tested(model: keras.Model, examples: Examples, dtype: str, reported: list[str]) -> Arrays:
    """Return what the model gives for the test examples, and what `evaluate` reports of them."""
    inputs, *targets = examples.test(dtype)
    arrays = {"probabilities": model.predict(inputs, batch_size=1000, verbose=0)}
    if examples.tests is not None:
        tested = model.evaluate(
            inputs, *targets[:1], batch_size=1000, verbose=0, return_dict=True, **sample_weights(targets)
        )
        arrays |= {f"history/test_{name}": np.array([tested[name]]) for name in reported}
    return arrays


def _constants(exact: bool) -> contextlib.AbstractContextManager[None]:
    if not exact:
        return contextlib.nullcontext()
    from keras_ref.trace.unrounded import unrounded  # of TensorFlow

    return unrounded()


def sample_weights(targets: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the argument of `fit` and `evaluate` for what stands behind the targets, if anything does."""
    return {"sample_weight": targets[1]} if len(targets) > 1 else {}


def save_model(given: TraceInputs, directory: Path) -> None:
    """Save the documented model with the given weights as Keras saves it: `model.keras` and `model.weights.h5`."""
    keras.config.set_floatx(given.dtype)
    model = Documented(given.data_dir).build()
    load(keys(model), given.weights)
    directory.mkdir(exist_ok=True)
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")


def load(variables: Mapping[str, Any], weights: Arrays) -> None:
    """Set the weights of a model, given by their names in files.

    Raises:
        InputError: if they are not its own.
    """
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    for name in sorted(shapes.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != shapes.get(name):
            raise InputError(f"weights: {name} is {found}, expected {shapes.get(name)}")
    for name, variable in variables.items():
        variable.assign(weights[name])


def state(model: keras.Model, variables: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """Return the weights of a model, given by their names in files, and the slots of its optimizer."""
    arrays = {f"{prefix}weights/{name}": variable.numpy() for name, variable in variables.items()}
    optimizer = type(model.optimizer).__name__
    trained = {id(variable) for variable in model.trainable_variables}
    for name, variable in variables.items():
        if id(variable) not in trained:
            continue
        for slot in KEPT_SLOTS:
            ending = f"/{variable.path.replace('/', '_')}_{slot}"  # as in adam/sequential_hidden_kernel_momentum
            for own in model.optimizer.variables:
                if own.path.endswith(ending):
                    arrays[f"{prefix}{SLOTS.get((optimizer, slot), slot)}/{name}"] = own.numpy()
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
        return keras.ops.convert_to_tensor(self.value)

    def reset_state(self) -> None:
        pass


class StepTrace(keras.callbacks.Callback):  # type: ignore[misc]
    """Keep the loss and the accuracy of every batch before its update, and more of the steps that are asked for."""

    def __init__(
        self,
        model: keras.Model,
        variables: Mapping[str, Any],
        batch: Callable[[int], Batch],
        given: TraceInputs,
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self.batch, self.given, self.progress = batch, given, progress
        self.variables = variables
        outputs = {layer.name: layer.output for layer in recorded(model)}
        self.layers = keras.Model(model.inputs[0], outputs)
        self.drops = [Draws(layer) for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        self.modal = any(isinstance(layer, MODAL) for layer in all_layers(model))
        self.last_loss = keep_loss(model)
        if self.drops and keras.backend.backend() != "tensorflow":
            model.run_eagerly = True  # so that a step sees its own draws
        self.kept: dict[str, np.ndarray] = {}
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def on_train_batch_begin(self, batch_index: int, logs: Any = None) -> None:
        model, step = self.model, len(self.losses)  # on JAX `self.model` is what puts the values into the variables
        inputs, *targets = self.batch(step)
        for drop in self.drops:
            drop.draw(step, len(inputs))
        if step == 0:
            self.kept |= self.activations("activations", inputs)
        if step in self.given.record_at:
            self.kept |= self.activations(f"activations/{step}", inputs)
            before = [variable.numpy() for variable in model.non_trainable_variables]
            if self.modal:
                self.kept |= self.activations(f"training/{step}", inputs, training=True)
                self._restore(before)
            of_all = gradients(model, inputs, targets)
            self._restore(before)
            of = {id(v): gradient for v, gradient in zip(model.trainable_variables, of_all, strict=True)}
            for name, variable in self.variables.items():
                if (gradient := of.get(id(variable))) is not None:
                    self.kept[f"gradients/{step}/{name}"] = gradient

    def on_train_batch_end(self, batch_index: int, logs: Any = None) -> None:
        model, step = self.model, len(self.losses)
        if step in self.given.record_at:
            self.kept |= state(model, self.variables, f"after/{step}/")
        self.losses.append(float(self.last_loss.numpy()))
        if "last_accuracy" in logs:
            self.accuracies.append(float(logs["last_accuracy"]))
        if self.given.hold:
            load(self.variables, self.given.weights)
        if self.progress:
            self.progress(len(self.losses), len(self.given.batches))

    def activations(self, prefix: str, inputs: np.ndarray, training: bool = False) -> dict[str, np.ndarray]:
        given = self.layers(inputs, training=training)
        return {f"{prefix}/{name}": keras.ops.convert_to_numpy(tensor) for name, tensor in given.items()}

    def _restore(self, values: list[np.ndarray]) -> None:
        for variable, value in zip(self.model.non_trainable_variables, values, strict=True):
            variable.assign(value)


MODAL = (keras.layers.Dropout, keras.layers.BatchNormalization)  # do something else in training mode


def all_layers(model: keras.Model) -> Iterator[Any]:
    """Yield the layers of a model and of those within it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def keep_loss(model: keras.Model) -> Any:
    """Keep the loss of each batch, with what regularises it, as `fit` differentiates it, in a variable.

    The model's own method is wrapped: `fit` reports running means alone. The variable is one of the metric of the loss,
    because JAX returns from a step what belongs to the model and nothing else.
    """
    compute_loss = model.compute_loss
    last = model.metrics[0].add_variable((), "zeros", name="last")

    def kept(*arguments: Any, **named: Any) -> Any:
        loss = compute_loss(*arguments, **named)
        last.assign(loss)
        return loss

    model.compute_loss = kept
    return last


class Draws:
    """Give a Dropout layer its draws, those that the port is given, too.

    Its `call` is replaced: Keras has no seam for it.
    """

    def __init__(self, layer: keras.layers.Dropout) -> None:
        self.name, self.rate, self.shape = layer.name, layer.rate, tuple(layer.input.shape[1:])
        self.mask: Any = np.ones((1, *self.shape), dtype=bool)
        if keras.backend.backend() == "tensorflow":  # whose steps are compiled
            import tensorflow as tf

            self.mask = tf.Variable(self.mask, shape=(None, *self.shape), dtype=tf.bool, trainable=False)

        def call(inputs: Any, training: bool = False) -> Any:
            if not training or self.rate == 0:
                return inputs
            return keras.ops.where(self.mask, inputs * (1 / (1 - self.rate)), keras.ops.zeros((), inputs.dtype))

        layer.call = call

    def draw(self, step: int, examples: int) -> None:
        mask = dropout_mask(self.name, self.rate, step, (examples, *self.shape))
        if isinstance(self.mask, np.ndarray):
            self.mask = mask
        else:
            self.mask.assign(mask)

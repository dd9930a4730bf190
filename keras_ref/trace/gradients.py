"""The gradients of a Keras model: the one thing of a traced training for which Keras has no call of its own."""

from typing import Any

import keras
import numpy as np


def gradients(model: keras.Model, inputs: np.ndarray, targets: list[np.ndarray]) -> list[np.ndarray | None]:
    """Return the gradient of the loss, with what regularises it, with respect to each trainable variable.

    What a pass changes besides, as moving statistics, is changed afterwards.

    Args:
        model: compiled.
        inputs: of a batch.
        targets: targets of it and, where there are any, sample weights.
    """

    def loss() -> Any:
        outputs = model(inputs, training=True)
        return model.compute_loss(inputs, targets[0], outputs, *targets[1:])

    return [None if one is None else np.asarray(one) for one in OF_BACKEND[keras.backend.backend()](model, loss)]


def _of_tensorflow(model: keras.Model, loss: Any) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss()
    found = tape.gradient(value, model.trainable_variables)
    return [None if one is None else tf.convert_to_tensor(one).numpy() for one in found]  # dense where it is of rows


def _of_jax(model: keras.Model, loss: Any) -> list[Any]:
    import jax

    def of(values: list[Any]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.trainable_variables, values, strict=True))):
            return loss()

    return list(jax.grad(of)([variable.value for variable in model.trainable_variables]))


def _of_torch(model: keras.Model, loss: Any) -> list[Any]:
    model.zero_grad()  # there a model of Keras is a module of torch, which is not imported here
    loss().backward()
    found = [variable.value.grad for variable in model.trainable_variables]
    arrays = [None if one is None else one.detach().cpu().numpy().copy() for one in found]
    model.zero_grad()
    return arrays


OF_BACKEND = {"tensorflow": _of_tensorflow, "jax": _of_jax, "torch": _of_torch}

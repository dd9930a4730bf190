"""Run as a process of its own: what Keras makes of the cases of `porting_cases`, in float64.

python keras_porting.py as_it_is|unrounded OUT.npz
"""

import contextlib
import sys

import numpy as np
import porting_cases as cases

from keras_ref.quiet import import_keras

rounding, output = sys.argv[1:]
import_keras()

import keras  # noqa: E402  # quietly
import tensorflow as tf  # noqa: E402
from keras import layers, ops  # noqa: E402

from keras_ref.trace.unrounded import unrounded  # noqa: E402

Arrays = dict[str, np.ndarray]


def optimizers() -> Arrays:
    arrays = {}
    for case, (name, arguments) in cases.OPTIMIZERS.items():
        for scheduled in (False, True):
            if scheduled:
                rate = keras.optimizers.schedules.ExponentialDecay(arguments["learning_rate"], 10, 0.7)
                arguments = arguments | {"learning_rate": rate}
            optimizer = getattr(keras.optimizers, name)(**arguments)
            variable = keras.Variable(cases.draw(3, 4))
            for step, gradient in enumerate(cases.gradients()):
                optimizer.apply_gradients([(ops.convert_to_tensor(gradient), variable)])
                arrays[f"{case}/{scheduled}/{step}"] = variable.numpy()
            arrays |= {f"{case}/{scheduled}/{slot.name}": slot.numpy() for slot in optimizer.variables[2:]}
        optimizer = getattr(keras.optimizers, name)(**cases.OPTIMIZERS[case][1])
        variable = keras.Variable(cases.draw(5, 2))
        for step in range(cases.STEPS):
            tokens, values = cases.rows(step)
            slices = tf.IndexedSlices(tf.constant(values), tf.constant(tokens), tf.constant((5, 2)))
            optimizer.apply_gradients([(slices, variable)])
            arrays[f"{case}/rows/{step}"] = variable.numpy()
    return arrays


def embedding() -> Arrays:
    """The gradient of an embedding as Keras' own `fit` hands it to an optimizer: averages of squares."""
    arrays = {}
    for regularizer in (None, keras.regularizers.L2(0.5)):
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(5, 2, embeddings_regularizer=regularizer),
                layers.GlobalAveragePooling1D(),
                layers.Dense(1),
            ]
        )
        model.compile(optimizer=keras.optimizers.RMSprop(0.1), loss="mse")
        model.set_weights([cases.draw(5, 2), cases.draw(2, 1), cases.draw(1)])
        model.fit(cases.TOKENS, cases.draw(3), batch_size=3, verbose=0, shuffle=False)
        (slot,) = (slot for slot in model.optimizer.variables if slot.path.endswith("embeddings_velocity"))
        arrays["regularised" if regularizer else "plain"] = slot.numpy()
    return arrays


def schedules() -> Arrays:
    arrays = {}
    for case, (name, arguments) in cases.SCHEDULES.items():
        if name != "PiecewiseConstantDecay":
            arguments = {"initial_learning_rate": cases.INITIAL_RATE, **arguments}
        schedule = getattr(keras.optimizers.schedules, name)(**arguments)
        # As an optimizer asks: with its number of steps, in a variable.
        steps = [keras.Variable(step, dtype="int") for step in range(cases.STEPS)]
        arrays[case] = np.array([ops.cast(schedule(step), "float64") for step in steps])
    return arrays


def batch_norms() -> Arrays:
    arrays = {}
    for case, (shape, arguments) in cases.BATCH_NORMS.items():
        layer = layers.BatchNormalization(**arguments)
        layer.build(shape)
        layer.set_weights([cases.draw(3, seed=i) ** 2 for i in range(len(layer.weights))])
        for step in range(5):
            x = tf.constant(cases.draw(*shape, seed=step) * 3 + 1)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y * cases.draw(*shape, seed=50 + step))
            found = tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])
            arrays |= {f"{case}/{step}/y": y.numpy(), f"{case}/{step}/x": found[0].numpy()}
            arrays |= {
                f"{case}/{step}/{w.name}": g.numpy() for w, g in zip(layer.trainable_weights, found[1:], strict=True)
            }
            arrays |= {f"{case}/{step}/{w.name}": w.numpy() for w in layer.non_trainable_weights}
        arrays[f"{case}/evaluated"] = layer(cases.draw(*shape, seed=9), training=False).numpy()
    return arrays


def padded() -> Arrays:
    arrays = {}
    for case, (name, lengths, kernel, stride, dilation) in cases.PADDED.items():
        x = cases.draw(2, *lengths, 2) - 2  # negative for the most part: a maximum that counts zeros would be zero
        if name.startswith("Conv"):
            layer = getattr(layers, name)(3, kernel, strides=stride, dilation_rate=dilation, padding="same")
            layer.build(x.shape)
            layer.set_weights([cases.draw(*weight.shape) for weight in layer.weights])
            arrays[f"{case}/kernel"], arrays[f"{case}/bias"] = layer.get_weights()
        else:
            layer = getattr(layers, name)(kernel, strides=stride, padding="same")
        arrays[case] = layer(x).numpy()
    return arrays


def recurrent() -> Arrays:
    arrays = {}
    for name in ("LSTM", "GRU"):
        layer = getattr(layers, name)(4, return_sequences=True)
        layer.build((3, 6, 2))
        layer.set_weights([cases.draw(*weight.shape) for weight in layer.weights])
        x = tf.constant(cases.draw(3, 6, 2))
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(y * cases.draw(3, 6, 4, seed=1))
        found = tape.gradient(loss, [weight.value for weight in layer.trainable_weights])
        arrays[name] = y.numpy()
        for i, (weight, gradient) in enumerate(zip(layer.get_weights(), found, strict=True)):
            arrays |= {f"{name}/{i}": weight, f"{name}/{i}/gradient": gradient.numpy()}
        fresh = getattr(layers, name)(40)
        fresh.build((3, 6, 30))
        arrays |= {f"{name}/{i}/start": weight for i, weight in enumerate(fresh.get_weights())}
    return arrays


def initializers() -> Arrays:
    arrays = {}
    for name, (shape, arguments) in cases.INITIALIZERS.items():
        arrays[name] = getattr(keras.initializers, name)(seed=1, **arguments)(shape).numpy()
    fresh = layers.Embedding(200, 30)
    fresh.build((1,))
    return arrays | {"Embedding": fresh.get_weights()[0]}


def losses() -> Arrays:
    predictions, targets = cases.draw(6, 1), cases.draw(6, seed=1)
    mse = keras.losses.MeanSquaredError()
    return {
        "[N, 1] and [N]": np.array(mse(targets, predictions)),
        "[N] and [N, 1]": np.array(mse(targets[:, None], predictions[:, 0])),
    }


keras.config.set_floatx("float64")
groups = (optimizers, embedding, schedules, batch_norms, padded, recurrent, initializers, losses)
with unrounded() if rounding == "unrounded" else contextlib.nullcontext():
    results = {f"{group.__name__}/{key}": array for group in groups for key, array in group().items()}
np.savez(output, **results)

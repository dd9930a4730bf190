"""Run as a process of its own: what Keras computes in float64 with constants that float32 has not.

python keras_rounding.py as_it_is|unrounded OUT.npz
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from porting_cases import draw

from keras_ref.quiet import import_keras

import_keras()

import keras  # noqa: E402  # quietly
import tensorflow as tf  # noqa: E402
from keras import activations, layers, losses, optimizers, regularizers  # noqa: E402

from keras_ref.trace.unrounded import unrounded  # noqa: E402

keras.config.set_floatx("float64")
X, P = draw(6, 4), 1 / (1 + np.exp(-draw(6, 4, seed=1)))  # any numbers, probabilities
T = (draw(6, 4, seed=2) > 0).astype("float64")
IMAGES = draw(2, 6, 6, 4)


def of_layer(layer: keras.Layer, x: np.ndarray = X) -> Any:
    return layer(tf.constant(x), training=True)


def of_loss(loss: keras.Loss, targets: np.ndarray, predictions: np.ndarray) -> Any:
    return loss(tf.constant(targets), tf.constant(predictions))


def of_optimizer(optimizer: keras.Optimizer) -> Any:
    variable = keras.Variable(draw(3, 2))
    for step in range(8):
        optimizer.apply_gradients([(tf.constant(draw(3, 2, seed=10 + step)), variable)])
    return variable.numpy()


CASES: dict[str, Callable[[], Any]] = {
    "gelu": lambda: activations.gelu(tf.constant(X)),
    "gelu tanh": lambda: activations.gelu(tf.constant(X), approximate=True),
    "selu": lambda: activations.selu(tf.constant(X)),
    "hard_sigmoid": lambda: activations.hard_sigmoid(tf.constant(X)),
    "elu": lambda: of_layer(layers.ELU(0.7)),
    "leaky_relu": lambda: of_layer(layers.LeakyReLU(0.3)),
    "relu": lambda: of_layer(layers.ReLU(max_value=0.7, negative_slope=0.1, threshold=0.05)),
    "layer normalisation": lambda: of_layer(layers.LayerNormalization()),
    "batch normalisation": lambda: of_layer(layers.BatchNormalization()),
    "group normalisation": lambda: of_layer(layers.GroupNormalization(2), IMAGES),
    "rescaling": lambda: of_layer(layers.Rescaling(1 / 255, offset=0.1)),
    "normalization": lambda: of_layer(layers.Normalization(mean=0.3, variance=0.7)),
    "attention": lambda: layers.MultiHeadAttention(2, 3, kernel_initializer="ones")(*[tf.constant(X[None])] * 2),
    "resizing": lambda: of_layer(layers.Resizing(4, 5), IMAGES),
    "constant": lambda: of_layer(layers.Dense(2, kernel_initializer=keras.initializers.Constant(0.3))),
    "l1": lambda: regularizers.L1(0.003)(tf.constant(X)),
    "l2": lambda: regularizers.L2(0.003)(tf.constant(X)),
    "huber": lambda: of_loss(losses.Huber(0.7), X, P),
    "log_cosh": lambda: of_loss(losses.LogCosh(), X, P),
    "binary crossentropy": lambda: of_loss(losses.BinaryCrossentropy(label_smoothing=0.1), T, P),
    "clipped probabilities": lambda: of_loss(losses.BinaryCrossentropy(), T, 1 - T),
    "sgd": lambda: of_optimizer(optimizers.SGD(0.03)),
    "sgd momentum": lambda: of_optimizer(optimizers.SGD(0.03, momentum=0.9)),
    "sgd weight decay": lambda: of_optimizer(optimizers.SGD(0.03, weight_decay=0.003)),
    "sgd clipnorm": lambda: of_optimizer(optimizers.SGD(0.03, clipnorm=0.3)),
    "adam": lambda: of_optimizer(optimizers.Adam(0.03)),
    "adamw": lambda: of_optimizer(optimizers.AdamW(0.03)),
}
with unrounded() if sys.argv[1] == "unrounded" else contextlib.nullcontext():
    results = {name: np.asarray(case()) for name, case in CASES.items()}
np.savez(sys.argv[2], **results)

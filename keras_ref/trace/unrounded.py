"""Keras in float64 whose constants keep their bits.

On TensorFlow (keras 3.15.1, tensorflow 2.21.0) a Python number on its way into a float64 model often passes through
float32: `keras.ops.cast(0.9, "float64")` is a float32 tensor that is made wider, 0.89999998. So do a schedule's rates,
momentum, the factor of L2, the betas of Adam, the constants of GELU. A port that computes with the number itself
differs by some 1e-9. What resizes images by interpolation is computed in float32, all of it, here too.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import math_ops

REPLACED = ((tf, "cast"), (math_ops, "cast"), (tf, "convert_to_tensor"), (tf.nn, "leaky_relu"))


@contextlib.contextmanager
def unrounded() -> Iterator[None]:
    """Build and train within it: Python floats become float64 tensors without a detour.

    There is no public way. Functions of TensorFlow are replaced while it lasts: `cast`, also as TensorFlow itself calls
    it, given a float and float64; `convert_to_tensor`, given a float and no dtype, since Keras casts afterwards; and
    `leaky_relu`, which keeps its slope as a float32.
    """
    cast, convert, leaky_relu = tf.cast, tf.convert_to_tensor, tf.nn.leaky_relu

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if isinstance(x, float) and tf.as_dtype(dtype) == tf.float64:
            return tf.constant(x, tf.float64)
        return cast(x, dtype, name=name)

    def exact_convert(value: Any, dtype: Any = None, *others: Any, **named: Any) -> Any:
        if dtype is None and isinstance(value, float):
            dtype = tf.float64
        return convert(value, dtype, *others, **named)

    def exact_leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        if features.dtype != tf.float64:
            return leaky_relu(features, alpha, name=name)
        return tf.where(features > 0, features, alpha * features)

    kept = [(module, name, getattr(module, name)) for module, name in REPLACED]
    tf.cast = math_ops.cast = exact_cast
    tf.convert_to_tensor, tf.nn.leaky_relu = exact_convert, exact_leaky_relu
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)

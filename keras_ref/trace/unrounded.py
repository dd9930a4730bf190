"""Keras in float64 whose constants keep their bits.

On TensorFlow (keras 3.15.1, tensorflow 2.21.0) a Python number on its way into a float64 model often passes through
float32: `tf.cast(0.1, "float64")` and `tf.convert_to_tensor(0.1)` make a float32 tensor first. So do a schedule's
rates, momentum, the factor of L2, the betas of Adam. A port that computes with the number itself differs by some 1e-9.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import math_ops


@contextlib.contextmanager
def unrounded() -> Iterator[None]:
    """Build and train within it: Python floats become float64 tensors without a detour.

    There is no public way: three functions of TensorFlow are replaced while it lasts.
    """
    cast, convert = tf.cast, tf.convert_to_tensor

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if isinstance(x, float) and tf.as_dtype(dtype) == tf.float64:
            return tf.constant(x, tf.float64)
        return cast(x, dtype, name=name)

    def exact_convert(value: Any, dtype: Any = None, *others: Any, **named: Any) -> Any:
        if dtype is None and isinstance(value, float):
            dtype = tf.float64
        return convert(value, dtype, *others, **named)

    kept = [(module, name, getattr(module, name)) for module, name in _REPLACED]
    tf.cast = math_ops.cast = exact_cast
    tf.convert_to_tensor = exact_convert
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


_REPLACED = ((tf, "cast"), (math_ops, "cast"), (tf, "convert_to_tensor"))

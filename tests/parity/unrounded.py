"""Keras on TensorFlow whose constants keep their bits. Imported before Keras, by the processes that ask Keras.

In a float64 model Keras passes many of Python's numbers through float32: `keras.ops.cast(0.9, "float64")` is a float32
tensor that is made wider, 0.89999998. Functions of TensorFlow are wrapped, before Keras is imported, so that a
Python float that ends in float64 goes there directly:

- `tf.cast`, and `math_ops.cast`, which TensorFlow calls itself, given a float and float64;
- `tf.convert_to_tensor`, given a float and no dtype: Keras casts the tensor afterwards.

And one whose own attribute is a float32, whatever it is given:

- `tf.nn.leaky_relu`, which becomes `x` and `alpha * x`.

What resizes images by interpolation is computed in float32, all of it, and stays so.
"""

from typing import Any


def keep_bits() -> None:
    import tensorflow as tf
    from tensorflow.python.ops import math_ops

    cast, convert_to_tensor = tf.cast, tf.convert_to_tensor

    def exact_cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        if isinstance(x, float) and tf.as_dtype(dtype) == tf.float64:
            return tf.constant(x, tf.float64)
        return cast(x, dtype, name=name)

    def exact_convert(value: Any, dtype: Any = None, *others: Any, **options: Any) -> Any:
        if isinstance(value, float) and dtype is None:
            dtype = tf.float64
        return convert_to_tensor(value, dtype, *others, **options)

    leaky_relu = tf.nn.leaky_relu

    def exact_leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        if features.dtype != tf.float64:
            return leaky_relu(features, alpha, name=name)
        return tf.where(features > 0, features, alpha * features)

    tf.nn.leaky_relu = exact_leaky_relu
    tf.cast = math_ops.cast = exact_cast
    tf.convert_to_tensor = exact_convert

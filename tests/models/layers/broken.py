"""What cannot be compared: models, data and ports. Keras is imported where it is needed: a port's side reads this."""

from typing import Any

import numpy as np


def small(*layers: Any, compiled: bool = True) -> Any:
    import keras

    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3, name="output")])
    if compiled:
        model.compile(loss="mse")
    return model


def not_compiled() -> Any:
    return small(compiled=False)


def not_built() -> Any:
    import keras

    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(loss="mse")
    return model


def raises() -> Any:
    return 1 / 0


def two_inputs() -> Any:
    import keras

    one, other = keras.Input((6,)), keras.Input((6,))
    model = keras.Model([one, other], keras.layers.Add()([one, other]))
    model.compile(loss="mse")
    return model


def draws() -> Any:
    import keras

    return small(keras.layers.GaussianNoise(0.1, name="noise"))


def subclass() -> Any:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 6)))
    model.compile(loss="mse")
    return model


def bidirectional() -> Any:
    import keras

    layers = keras.layers
    return small(layers.Reshape((3, 2)), layers.Bidirectional(layers.LSTM(2), name="both"))


def one_array() -> Any:
    return np.zeros(3)


def lists() -> Any:
    return [0.0, 1.0], np.zeros(2)


def uneven() -> Any:
    return np.zeros((5, 6)), np.zeros(4)


def nan() -> Any:
    return np.full((5, 6), np.nan), np.zeros(5)


def texts() -> Any:
    return np.array(["a", "b", "c"]), np.zeros(3)


def torch_beside_keras() -> Any:
    import torch  # noqa: F401  # which must not be there


def raising_port() -> Any:
    raise ZeroDivisionError("division by zero")

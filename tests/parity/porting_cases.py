"""What Keras and the classes of `lit_mnist.porting` are both given. Imports neither."""

from collections.abc import Iterator
from typing import Any

import numpy as np

STEPS = 40
BATCH = 4
TOKENS = np.array([[1, 1, 1, 2], [0, 3, 3, 1], [2, 2, 2, 2]])  # of an embedding of five, most of them repeated

# Class, and arguments by Keras' names.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"learning_rate": 0.05}),
    "momentum": ("SGD", {"learning_rate": 0.05, "momentum": 0.9}),
    "nesterov": ("SGD", {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}),
    "rmsprop": ("RMSprop", {"learning_rate": 0.01}),
    "rmsprop rho": ("RMSprop", {"learning_rate": 0.01, "rho": 0.7, "epsilon": 1e-3}),
    "rmsprop momentum": ("RMSprop", {"learning_rate": 0.01, "momentum": 0.9}),
    "rmsprop centered": ("RMSprop", {"learning_rate": 0.01, "centered": True, "momentum": 0.5}),
    "adam": ("Adam", {"learning_rate": 0.01}),
    "adam amsgrad": ("Adam", {"learning_rate": 0.01, "amsgrad": True, "epsilon": 1e-3}),
    "adamw": ("AdamW", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"learning_rate": 0.1}),
    "adagrad start": ("Adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 0.3, "epsilon": 1e-2}),
}
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "exponential": ("ExponentialDecay", {"decay_steps": 7, "decay_rate": 0.9}),
    "staircase": ("ExponentialDecay", {"decay_steps": 7, "decay_rate": 0.9, "staircase": True}),
    "inverse time": ("InverseTimeDecay", {"decay_steps": 7, "decay_rate": 0.3}),
    "inverse time staircase": ("InverseTimeDecay", {"decay_steps": 7, "decay_rate": 0.3, "staircase": True}),
    "polynomial": ("PolynomialDecay", {"decay_steps": 30, "end_learning_rate": 0.01, "power": 1.5}),
    "polynomial cycle": ("PolynomialDecay", {"decay_steps": 9, "power": 0.7, "cycle": True}),
    "piecewise": ("PiecewiseConstantDecay", {"boundaries": [5, 9, 20], "values": [0.1, 0.07, 0.03, 0.01]}),
    "piecewise once": ("PiecewiseConstantDecay", {"boundaries": [5], "values": [0.1, 0.07]}),
    "cosine": ("CosineDecay", {"decay_steps": 30, "alpha": 0.1}),
    "cosine warm-up": ("CosineDecay", {"decay_steps": 20, "warmup_target": 0.3, "warmup_steps": 10}),
    "restarts": ("CosineDecayRestarts", {"first_decay_steps": 6, "m_mul": 0.8, "alpha": 0.1}),
    "restarts alike": ("CosineDecayRestarts", {"first_decay_steps": 6, "t_mul": 1.0}),
}
INITIAL_RATE = 0.1  # of each of them

BATCH_NORMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # shape of a batch as Keras has it, arguments
    "features": ((8, 3), {}),
    "sequences": ((4, 5, 3), {"momentum": 0.8}),
    "images": ((4, 5, 6, 3), {"momentum": 0.9, "epsilon": 1e-2}),
    "volumes": ((2, 3, 4, 2, 3), {"momentum": 0.7}),
    "no beta": ((4, 5, 6, 3), {"center": False}),
    "no gamma": ((4, 5, 6, 3), {"scale": False}),
    "one value": ((1, 3), {"momentum": 0.9}),
}
# Kind, length of each dimension, kernel, stride, dilation; channels are 2 in and 3 out.
PADDED: dict[str, tuple[str, tuple[int, ...], Any, Any, Any]] = {
    "conv2d even length": ("Conv2D", (8, 10), 3, 2, 1),
    "conv2d odd length": ("Conv2D", (7, 9), 3, 2, 1),
    "conv2d even kernel": ("Conv2D", (8, 7), 4, 1, 1),
    "conv2d uneven": ("Conv2D", (11, 8), (5, 2), (3, 2), 1),
    "conv2d dilation": ("Conv2D", (9, 8), (3, 2), 1, (2, 3)),
    "conv2d stride beyond kernel": ("Conv2D", (8, 9), 1, 3, 1),
    "conv1d": ("Conv1D", (10,), 3, 2, 1),
    "conv1d dilation": ("Conv1D", (10,), 4, 1, 2),
    "max 2d": ("MaxPooling2D", (8, 7), 3, 2, 1),
    "max 2d default stride": ("MaxPooling2D", (7, 9), 2, None, 1),
    "max 1d": ("MaxPooling1D", (10,), 3, 2, 1),
    "average 2d": ("AveragePooling2D", (8, 7), 3, 2, 1),
    "average 2d uneven": ("AveragePooling2D", (8, 7), (2, 3), (1, 2), 1),
    "average 1d": ("AveragePooling1D", (10,), 4, 3, 1),
}
INITIALIZERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # shape as Keras has it
    "GlorotUniform": ((3, 3, 20, 40), {}),
    "GlorotNormal": ((3, 3, 20, 40), {}),
    "HeUniform": ((60, 100), {}),
    "HeNormal": ((60, 100), {}),
    "LecunUniform": ((60, 100), {}),
    "LecunNormal": ((5, 20, 60), {}),
    "TruncatedNormal": ((60, 100), {"stddev": 0.05}),
    "VarianceScaling": ((60, 100), {"scale": 3.0, "mode": "fan_out", "distribution": "untruncated_normal"}),
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def gradients(seed: int = 0) -> Iterator[np.ndarray]:
    """Gradients [3, 4], some of them so small that an epsilon counts."""
    sizes = 10 ** np.random.default_rng(seed).uniform(-5, 0, STEPS)
    for step in range(STEPS):
        yield draw(3, 4, seed=seed + 1 + step) * sizes[step]


def rows(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [4] of a batch, and the gradient of each [4, 2], of an embedding [5, 2]."""
    return TOKENS[step % len(TOKENS)], draw(4, 2, seed=100 + step)

"""What a port of a Keras model needs and torch has not: small classes in torch's own style, beside `KerasAdam`.

Each says which formula it follows and where Keras has it; the tests hold each against Keras in float64.

Constants keep all their bits here. Keras on TensorFlow passes some of Python's numbers through float32, in a float64
model too: where it does, a docstring says so, and a float64 training of Keras differs from ours by that rounding, 1e-8
of the number. In float32 there is no such difference.

Dimension key: N sequences or images in a batch, C channels, H rows, W columns, T steps of a sequence, I inputs,
O outputs and U units of a layer.
"""

from lit_mnist.porting.initializers import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    keras_defaults_,
    lecun_normal_,
    lecun_uniform_,
    truncated_normal_,
    variance_scaling_,
)
from lit_mnist.porting.layers import KerasBatchNorm, KerasEmbedding
from lit_mnist.porting.losses import match_rank
from lit_mnist.porting.optimizers import KerasAdagrad, KerasRMSprop, KerasSGD
from lit_mnist.porting.padding import (
    SameAvgPool1d,
    SameAvgPool2d,
    SameConv1d,
    SameConv2d,
    SameMaxPool1d,
    SameMaxPool2d,
    SamePad1d,
    SamePad2d,
)
from lit_mnist.porting.rnn import KerasGRU, KerasLSTM
from lit_mnist.porting.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "KerasAdagrad",
    "KerasBatchNorm",
    "KerasEmbedding",
    "KerasGRU",
    "KerasLSTM",
    "KerasRMSprop",
    "KerasSGD",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "SameAvgPool1d",
    "SameAvgPool2d",
    "SameConv1d",
    "SameConv2d",
    "SameMaxPool1d",
    "SameMaxPool2d",
    "SamePad1d",
    "SamePad2d",
    "glorot_normal_",
    "glorot_uniform_",
    "he_normal_",
    "he_uniform_",
    "keras_defaults_",
    "lecun_normal_",
    "lecun_uniform_",
    "match_rank",
    "truncated_normal_",
    "variance_scaling_",
]

"""A small residual network with strides, batch normalisation, L2, a schedule and Nesterov momentum."""

import keras
from keras import layers


def build_model() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x)
    shortcut = layers.ReLU(name="relu1")(x)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv2")(shortcut)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = layers.ReLU(name="relu2")(x)
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="conv3")(x)
    x = layers.BatchNormalization(name="bn3")(x)
    x = layers.ReLU(name="relu3")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-3), name="output")(x)
    model = keras.Model(inputs, outputs)
    rate = keras.optimizers.schedules.ExponentialDecay(0.02, decay_steps=100, decay_rate=0.9)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model

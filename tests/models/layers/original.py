"""Keras models with a layer of every kind whose weights are mapped, and of every way in which layers are joined."""

import keras
from keras import layers


def images() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="tanh", name="conv"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise"),
            layers.SeparableConv2D(6, 3, padding="same", activation="gelu", name="separable"),
            layers.Conv2DTranspose(5, 2, strides=2, name="transposed"),
            layers.PReLU(shared_axes=[1, 2], name="prelu", alpha_initializer=keras.initializers.Constant(0.25)),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.3, name="dropout"),
            layers.Dense(7, activation="elu", name="hidden"),
            layers.Dense(1, activation="sigmoid", name="output"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adagrad(0.01), loss="binary_crossentropy", metrics=["binary_accuracy"])
    return model


def sequences() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(11, 5, name="embedding"),
            layers.Conv1D(6, 3, activation="relu", name="conv"),
            layers.GroupNormalization(3, name="groups"),
            layers.LayerNormalization(name="norm"),
            layers.GRU(4, return_sequences=True, name="gru"),
            layers.LSTM(3, name="lstm"),
            layers.Dense(4, name="output"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.RMSprop(0.001), loss=loss)
    return model


def volumes() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((4, 5, 6, 2)),
            layers.Conv3D(3, 2, name="conv"),
            layers.Conv3DTranspose(2, 2, name="transposed"),
            layers.Flatten(name="flatten"),
            layers.Dense(2, name="output"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=keras.losses.Huber(), metrics=["mae"])
    return model


def joined() -> keras.Model:
    """Branches, a layer that is called twice, a model within the model."""
    inputs = keras.Input((6,))
    shared = layers.Dense(5, activation="relu", name="shared")
    block = keras.Sequential([keras.Input((5,)), layers.Dense(5, name="first"), layers.Dense(5, name="second")])
    block.name = "block"
    projected = layers.Dense(6, name="projected")(inputs)
    one, other = shared(inputs), shared(projected)
    together = layers.Concatenate(name="together")([block(one), other])
    outputs = layers.Dense(3, activation="softmax", name="output")(together)
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.AdamW(0.01, clipnorm=1.0)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

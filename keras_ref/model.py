"""The documented model."""

import keras
from keras import layers


def build_model() -> keras.Sequential:
    """Build and compile the documented classifier: images [N, 28, 28, 1] in [0, 1] to probabilities [N, 10]."""
    model = keras.Sequential(
        [
            keras.Input(shape=(28, 28, 1)),
            layers.Conv2D(6, kernel_size=(3, 3), padding="same", activation="relu", name="conv"),
            layers.MaxPooling2D(pool_size=(2, 2), strides=(2, 2), name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="output"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model

"""An LSTM that reads a Roman numeral and tells its value in thousands."""

import keras
from keras import layers


def build_model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((15,), dtype="int32"),
            layers.Embedding(8, 6, name="embedding"),
            layers.LSTM(16, name="lstm"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(1, name="output"),
        ]
    )
    model.compile(optimizer=keras.optimizers.RMSprop(0.001), loss="mean_squared_error", metrics=["mae"])
    return model

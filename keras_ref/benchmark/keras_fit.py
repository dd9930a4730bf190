"""The documented training as a Keras script, on the backend that KERAS_BACKEND names."""

import argparse

import keras
import matplotlib.pyplot as plt
from keras import layers
from keras.utils import to_categorical

from keras_ref.data import load_data

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--epochs", type=int)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--output_dir")
parser.add_argument("--xla", action="store_true")


def main() -> None:
    args = parser.parse_args()
    mnist = load_data(args.data_dir, verify=False)
    train_images = mnist.train_images[..., None].astype("float32") / 255  # [I, 28, 28, 1] in [0, 1]
    test_images = mnist.test_images[..., None].astype("float32") / 255
    train_labels, test_labels = to_categorical(mnist.train_labels, 10), to_categorical(mnist.test_labels, 10)
    model = keras.Sequential(
        [
            keras.Input(shape=(28, 28, 1)),
            layers.Conv2D(6, kernel_size=(3, 3), padding="same", activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2), strides=(2, 2)),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer="adam",
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=True if args.xla else "auto",  # Keras' default
    )
    print("Training begins", flush=True)
    history = model.fit(train_images, train_labels, epochs=args.epochs, batch_size=args.batch_size, verbose=2)
    test_loss, test_accuracy = model.evaluate(test_images, test_labels, verbose=0)
    model.save(f"{args.output_dir}/model.keras")
    for name in ("loss", "accuracy"):
        plt.figure()
        plt.plot(history.history[name])
        plt.xlabel("epoch")
        plt.ylabel(name)
        plt.savefig(f"{args.output_dir}/{name}.png")
    print(f"Test loss {test_loss:.4f}, accuracy {test_accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()

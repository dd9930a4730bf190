"""python -m keras_ref.train: the documented Keras script, with a run directory like that of the port."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.data import load_data, scale_pixels
from keras_ref.quiet import import_keras
from lit_mnist.runs.command import BatchSize, LearningRate, PositiveInt, Seed, run
from lit_mnist.runs.directory import (
    create_run_directory,
    plan_run_directory,
    result_lines,
    write_metrics,
    write_results,
)
from lit_mnist.runs.files import versions


def train(
    max_epochs: PositiveInt = 10,
    batch_size: BatchSize = 100,
    learning_rate: LearningRate = 0.001,
    seed: Seed = 0,
    data_dir: str = "data",
    verify_data: bool = True,
    output_dir: str = "runs",
    run_name: str | None = None,
) -> dict[str, Any]:
    """Train the documented MNIST classifier with Keras and evaluate it on the 10,000 test images.

    The results are put into <output_dir>/<run_name>, in the same files as those of lit_mnist.train.

    Args:
        max_epochs: How often to go through the training images.
        batch_size: Images in a step.
        learning_rate: Learning rate of Adam.
        seed: Decides the start weights; TensorFlow draws the order of the images, anew for each run and each epoch.
        data_dir: Where the data set is; if it is not there, the files that ship with lit_mnist are used.
        verify_data: Insist on MNIST's own files; false accepts other data in the same format.
        output_dir: Where the directory of the run is made.
        run_name: Name of that directory; by default made of the date and time.

    Returns:
        What summary.json holds.

    Raises:
        InputError: a wrong value or file; nothing was written.
    """
    config = dict(locals())  # before any other variable is set: the flags and their values
    run_directory = plan_run_directory(output_dir, run_name, prefix="keras_ref")
    mnist = load_data(data_dir, verify_data)

    import_keras()
    from keras.utils import to_categorical

    from keras_ref.model import build_model

    create_run_directory(run_directory, config)
    # Not keras.utils.set_random_seed: with TensorFlow's own seed set, too, fit() repeats one order in every epoch
    # (keras 3.15.1), which is another training than the documented one, with a worse result on the test images.
    random.seed(seed)  # Keras' initialisers draw their seeds from here
    model = build_model()
    model.optimizer.learning_rate = learning_rate
    model.summary()

    images, labels = scale_pixels(mnist.train_images), to_categorical(mnist.train_labels, 10)  # [60000, 28, 28, 1]
    test_images = scale_pixels(mnist.test_images)  # [10000, 28, 28, 1]
    start = time.monotonic()
    history = fit(model, images, labels, max_epochs, batch_size, run_directory)
    train_seconds = time.monotonic() - start
    test_loss, test_accuracy = model.evaluate(test_images, to_categorical(mnist.test_labels, 10), verbose=0)

    summary = {
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "test_images": len(test_images),
        "parameters": model.count_params(),
        "epochs": max_epochs,
        "batch_size": batch_size,
        "seed": seed,
        "framework": "keras",
        "versions": versions("keras", "tensorflow", "numpy"),
        "dataset_sha256": mnist.sha256,
        "train_seconds": round(train_seconds, 3),
    }
    probabilities = model.predict(test_images, verbose=0)  # [10000, 10]
    write_results(run_directory, history, summary, mnist.test_images, mnist.test_labels, probabilities)
    print(result_lines(run_directory, summary))
    return summary


def fit(
    model: Any, images: np.ndarray, labels: np.ndarray, epochs: int, batch_size: int, run_directory: Path
) -> list[dict[str, float]]:
    """Train; return a row of results an epoch, each written to the run directory with a checkpoint as it comes."""
    import keras

    history: list[dict[str, float]] = []

    def keep_epoch(epoch: int, logs: dict[str, float]) -> None:
        history.append({"epoch": epoch + 1, "train_loss": logs["loss"], "train_accuracy": logs["accuracy"]})
        write_metrics(run_directory, history)
        # Not Keras' ModelCheckpoint: it writes in place, and takes braces in the path for its own.
        beside = run_directory / "checkpoints" / ".part.keras"
        model.save(beside)
        beside.replace(beside.with_name(f"epoch={epoch + 1:02d}.keras"))

    model.fit(
        images,
        labels,
        epochs=epochs,
        batch_size=batch_size,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep_epoch)],
        verbose=1 if sys.stdout.isatty() else 2,  # a progress bar, or one line an epoch
    )
    return history


if __name__ == "__main__":
    run(train, prog="python -m keras_ref.train")

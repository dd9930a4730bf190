"""The pictures of a run say what the numbers say."""

from pathlib import Path

import numpy as np

from lit_mnist.runs.command import percent
from lit_mnist.runs.figures import confusion_matrix, learning_curves, misclassified, predictions, write_figure


def test_curves_show_every_epoch_and_the_test_result() -> None:
    history = [
        {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 0.85},
        {"epoch": 2, "train_loss": 0.3, "train_accuracy": 0.9, "val_loss": 0.35, "val_accuracy": 0.88},
    ]
    loss, accuracy = learning_curves(history, test_loss=0.33, test_accuracy=0.89).axes
    training, validation, test = loss.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 0.5], [2, 0.3]])
    np.testing.assert_array_equal(validation.get_xydata(), [[1, 0.4], [2, 0.35]])
    assert set(test.get_ydata()) == {0.33}
    assert [line.get_ydata()[-1] for line in accuracy.lines] == [0.9, 0.88, 0.89]


def test_curves_without_validation_show_none() -> None:
    history = [{"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.8}]
    for axis in learning_curves(history, 0.4, 0.85).axes:
        assert len(axis.lines) == 2


def test_confusion_matrix_counts_true_classes_in_rows() -> None:
    labels, predicted = np.array([3, 3, 3, 5, 7]), np.array([3, 8, 8, 5, 1])
    axis = confusion_matrix(labels, predicted).axes[0]
    shown = {text.get_position()[::-1]: text.get_text() for text in axis.texts}
    assert shown == {(3, 3): "1", (3, 8): "2", (5, 5): "1", (7, 1): "1"}
    assert axis.get_title(loc="left") == "3 of 5 test images misclassified"


def test_misclassified_shows_the_surest_mistakes_first() -> None:
    images = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    labels = np.array([0, 1, 2, 3])
    probabilities = np.full((4, 10), 0.01)
    for image, (digit, probability) in enumerate([(0, 0.9), (7, 0.6), (5, 0.8), (3, 0.7)]):
        probabilities[image, digit] = probability
    (axis,) = misclassified(images, labels, probabilities).axes
    shown = [(text.get_text(), image.get_array()[0, 0]) for text, image in zip(axis.texts, axis.images, strict=True)]
    assert shown == [("2 taken for 5\n80.0%", 2), ("1 taken for 7\n60.0%", 1)]


def test_a_model_without_a_mistake_can_be_drawn() -> None:
    labels = np.arange(10)
    misclassified(np.zeros((10, 28, 28), np.uint8), labels, np.eye(10))
    confusion_matrix(labels, labels)


def test_predictions_are_drawn_in_frames_whatever_letters_a_name_has(tmp_path: Path) -> None:
    figure = predictions(np.zeros((1, 28, 28), np.uint8), ["数字.png"], np.eye(10)[:1])
    write_figure(tmp_path / "seen.png", figure)  # a warning would be an error
    assert (tmp_path / "seen.png").stat().st_size > 1000
    assert all(spine.get_visible() for spine in figure.axes[0].spines.values())


def test_what_is_not_certain_is_never_called_100_percent() -> None:
    assert [percent(p) for p in (1, 0.99951, 0.9994, 0.5, 0)] == [">99.9%", ">99.9%", "99.9%", "50.0%", "0.0%"]

"""The pictures of a run: learning curves, confusion matrix, misclassified digits."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lit_mnist.runs.command import percent
from lit_mnist.runs.files import write_file

STYLE: dict[Any, Any] = {  # matplotlib types its keys one by one
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
TRAIN, VALIDATION, TEST = "#0b6fa4", "#d9822b", "#3b3b3b"  # blue, orange, grey: told apart by colour-blind readers


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure, as a whole or not at all, in the format that the name ends with."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that matplotlib's font has not: a box stands there
        figure.savefig(picture, format=path.suffix[1:].lower())
    write_file(path, picture.getvalue())


def learning_curves(history: Sequence[Mapping[str, float]], test_loss: float, test_accuracy: float) -> Figure:
    """Draw loss and accuracy against the epoch, with the result on the test images.

    Args:
        history: one row an epoch: epoch, train_loss, train_accuracy and, where there is any, val_*.
        test_loss: nats per image.
        test_accuracy: in [0, 1].
    """
    epochs = [row["epoch"] for row in history]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6))
        axes = figure.subplots(1, 2)
        for axis, metric, test in zip(axes, ("loss", "accuracy"), (test_loss, test_accuracy), strict=True):
            for stage, name, colour in (("train", "training", TRAIN), ("val", "validation", VALIDATION)):
                if f"{stage}_{metric}" in history[0]:
                    values = [row[f"{stage}_{metric}"] for row in history]
                    axis.plot(epochs, values, color=colour, marker="o", markersize=4, label=name)
            shown = f"{test:.4f}" if metric == "loss" else f"{test:.2%}"
            axis.axhline(test, color=TEST, linestyle="--", linewidth=1.2, label=f"test after training: {shown}")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.legend()
        axes[0].set_title("Loss (cross-entropy, nats per image)")
        axes[0].set_ylim(bottom=0)
        axes[1].set_title("Accuracy")
        axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw how many images of each class (row) were taken for each class (column).

    Args:
        labels: true classes, [N].
        predicted: predicted classes, [N].
    """
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    wrong = len(labels) - int(np.trace(counts))
    with rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(6.2, 5.6))
        axis = figure.subplots()
        # Logarithmic: the few mistakes are what one looks for, next to a diagonal of about 1,000 each.
        image = axis.imshow(np.ma.masked_equal(counts, 0), cmap="Blues", norm=LogNorm(1, max(counts.max(), 2)))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = count > counts.max() ** 0.6
                axis.text(column, row, f"{count:,}", ha="center", va="center", color="white" if dark else "black")
        axis.set_xticks(range(10))
        axis.set_yticks(range(10))
        axis.tick_params(length=0)
        axis.set_xlabel("predicted digit")
        axis.set_ylabel("true digit")
        axis.set_title(f"{wrong:,} of {len(labels):,} test images misclassified")
        bar = figure.colorbar(image, ax=axis, shrink=0.8, label="images (logarithmic)")
        bar.outline.set_visible(False)
    return figure


def misclassified(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, most: int = 40) -> Figure:
    """Draw the misclassified images, those first of which the model was surest.

    Args:
        images: bytes, [N, 28, 28].
        labels: true classes, [N].
        probabilities: of each class, [N, 10].
        most: how many to draw.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:most]
    columns = 8
    rows = max(1, -(-len(shown) // columns))
    width, height = columns * 1.2, rows * 1.5 + 0.6  # inches
    # All on one axis, in inches from the upper left corner: forty axes take a second to make and to draw.
    with rc_context(STYLE | {"axes.grid": False, "figure.constrained_layout.use": False}):
        figure = Figure(figsize=(width, height))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        for place, i in enumerate(shown):
            row, column = divmod(place, columns)
            left, top = column * 1.2 + 0.07, row * 1.5 + 0.9
            axis.imshow(images[i], cmap="gray_r", vmin=0, vmax=255, extent=(left, left + 1.06, top + 1.06, top))
            title = f"{labels[i]} taken for {predicted[i]}\n{percent(probabilities[i, predicted[i]])}"
            axis.text(left + 0.53, top - 0.06, title, ha="center", va="bottom", size=9)
        axis.set(xlim=(0, width), ylim=(height, 0))
        figure.suptitle(
            f"{len(wrong):,} test images misclassified"
            + (f"; the {len(shown)} the model was surest of" if len(shown) < len(wrong) else ""),
            fontsize=11,
            y=1 - 0.1 / height,
        )
    return figure


def predictions(images: np.ndarray, titles: Sequence[str], probabilities: np.ndarray, most: int = 60) -> Figure:
    """Draw images as the model saw them, each above the probabilities that it gives them.

    Args:
        images: bytes, [N, 28, 28].
        titles: of each.
        probabilities: of each class, [N, 10].
        most: how many to draw.
    """
    count = min(len(images), most)
    columns = min(count, 6)
    rows = -(-count // columns)
    with rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center", "axes.titlesize": 9}):
        figure = Figure(figsize=(max(columns * 1.8, 3.6), rows * 2.9 + 0.5))
        axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
        for axis in axes.flat:
            axis.axis("off")
        for i in range(count):
            row, column = divmod(i, columns)
            picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
            picture.axis("on")  # a frame: it shows where in the 28 x 28 pixels the digit stands
            picture.spines[:].set(visible=True, color="0.8")
            picture.set_xticks([])
            picture.set_yticks([])
            picture.imshow(images[i], cmap="gray_r", vmin=0, vmax=255)
            picture.set_title(titles[i])
            bars.axis("on")
            bars.spines["left"].set_visible(False)
            bars.bar(range(10), probabilities[i], color=TRAIN)
            bars.set_ylim(0, 1)
            bars.set_yticks([])
            bars.set_xticks(range(10))
            bars.tick_params(length=0, labelsize=7)
        shown = f"; the first {count} of {len(images):,}" if count < len(images) else ""
        figure.suptitle(f"What the model saw{shown}", fontsize=11)
    return figure

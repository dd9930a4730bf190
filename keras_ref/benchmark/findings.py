"""What the rounds of a benchmark say: ratios within a round, their median and their spread, and the targets."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_ref.benchmark.contestants import BATCH_SIZE, CONTESTANTS, OURS
from keras_ref.benchmark.measure import Training

EPOCHS = 10  # of the documented training
# Of two correct trainings the accuracies differ by chance and by the start weights, which torch draws otherwise: 0.967
# here and 0.958 in a plain loop after two epochs; after ten, 0.0016 are the standard deviation over 50 seeds
# (parity/recorded.json). Two hundred images more are other work: a class left out costs a thousand.
MARGIN = 0.02


@dataclass(frozen=True)
class Round:
    """One round: every contestant once.

    Attributes:
        trainings: by the name of the contestant.
        floor: milliseconds that the arithmetic of a step takes by itself; NaN if it was not measured.
        images: in an epoch.
        predicting: seconds for the test images, by the name of the contestant.
    """

    trainings: Mapping[str, Training]
    floor: float
    images: int
    predicting: Mapping[str, float]

    @property
    def step(self) -> float:
        """Milliseconds of a step of ours, in a warm epoch."""
        return 1000 * self.trainings[OURS].warm / -(-self.images // BATCH_SIZE)


@dataclass(frozen=True)
class Spread:
    """The median of one figure a round, with the least and the largest."""

    median: float
    least: float
    largest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.largest:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and largest of figures, one a round."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """A figure that is aimed at.

    Args:
        what: in words.
        must: the least that is to be reached.
        aim: what is to be tried for.
        figure: of a round; a KeyError where a contestant did not take part.
        more: whether more is better.
    """

    what: str
    must: float
    aim: float
    figure: Callable[[Round], float]
    more: bool = False

    def holds(self, measured: float) -> bool:
        return measured >= self.must if self.more else measured <= self.must


def of_epoch(name: str) -> Callable[[Round], float]:
    """Return the ratio of our epoch to that of another."""
    return lambda one: one.trainings[OURS].warm / one.trainings[name].warm


TARGETS = (
    Target("our epoch / Keras on TensorFlow", 0.30, 0.21, of_epoch("tensorflow")),
    Target("our epoch / Keras on JAX", 0.50, 0.35, of_epoch("jax")),
    Target("our epoch / plain PyTorch loop", 0.48, 0.34, of_epoch("loop")),
    Target("our step in Trainer.fit / calculated floor", 4, 2.5, lambda one: one.step / one.floor),
    Target("epoch of the usual Lightning script / ours", 4, 6, lambda one: 1 / of_epoch("lightning")(one), more=True),
    Target(
        f"whole command, {EPOCHS} epochs / Keras on TensorFlow",
        0.33,
        0.25,
        lambda one: one.trainings[OURS].whole(EPOCHS) / one.trainings["tensorflow"].whole(EPOCHS),
    ),
    Target("our command's time that is no training, s", 7, 5, lambda one: one.trainings[OURS].no_training),
    Target(
        "peak memory / Keras on TensorFlow",
        0.8,
        0.7,
        lambda one: one.trainings[OURS].memory / one.trainings["tensorflow"].memory,
    ),
    Target(
        "predicting the test images / Keras on TensorFlow",
        0.5,
        0.3,
        lambda one: one.predicting[OURS] / one.predicting["tensorflow"],
    ),
)


def targets(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return what was measured of each target; None where a contestant did not take part."""
    rows = []
    for target in TARGETS:
        try:
            measured = spread([target.figure(one) for one in rounds])
        except KeyError:
            rows.append({"what": target.what, "must": target.must, "aim": target.aim, "measured": None, "holds": None})
            continue
        row = {"what": target.what, "must": target.must, "aim": target.aim, "measured": vars(measured)}
        rows.append(row | {"holds": target.holds(measured.median)})
    return rows


def comparison(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return a row for each contestant: how many times our figure its own is, and its own."""
    rows = []
    figures: dict[str, Callable[[Training], float]] = {
        "epoch": lambda one: one.warm,
        "whole": lambda one: one.whole(EPOCHS),
        "no_training": lambda one: one.no_training,
        "memory": lambda one: one.memory,
    }
    for contestant in CONTESTANTS:
        name = contestant.name
        if name not in rounds[0].trainings:
            continue
        row: dict[str, Any] = {"name": name, "title": contestant.title}
        for figure, of in figures.items():
            row[figure] = vars(spread([of(one.trainings[name]) for one in rounds]))
            row[f"{figure}_ratio"] = vars(spread([of(one.trainings[OURS]) / of(one.trainings[name]) for one in rounds]))
        if name in rounds[0].predicting:
            row["predicting"] = vars(spread([one.predicting[name] for one in rounds]))
        row["test_loss"] = statistics.median(one.trainings[name].test_loss for one in rounds)
        row["test_accuracy"] = statistics.median(one.trainings[name].test_accuracy for one in rounds)
        rows.append(row)
    return rows


def apart(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name those whose accuracy is farther than `MARGIN` from the median of all: they did other work."""
    middle = statistics.median(row["test_accuracy"] for row in rows)
    return [row["title"] for row in rows if not abs(row["test_accuracy"] - middle) <= MARGIN]

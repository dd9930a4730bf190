"""The rungs of the ladder, each one value in one list, and the climb from rung to rung."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from keras_ref.parity import checks
from keras_ref.parity.comparisons import Comparison
from keras_ref.parity.sides import Sides

Dtype = Literal["both", "float64", "float32"]


@dataclass(frozen=True)
class Rung:
    """One thing that two trainings have to have in common.

    Args:
        number: its place; cheaper ones come first, and each takes for granted what those below it have shown.
        name: in a word or two.
        compared: what it compares.
        check: yields its comparisons. It is given what both sides say of themselves (`of_facts`), or the traces of
            `trainings`, ours and theirs, one training after the other, and in float32 Keras' in float64; or else the
            sides, and the precision.
        hint: where to look when it is the first that does not hold.
        dtypes: precisions in which it is climbed.
        of_facts: whether it compares facts.
        trainings: the trainings it looks at.
        flag: of the command, that asks for it; "" for a rung that is always climbed.
        value: of the flag, as an example.
    """

    number: int
    name: str
    compared: str
    check: Callable[..., Iterator[Comparison]]
    hint: str
    dtypes: tuple[str, ...] = ("float64", "float32")
    of_facts: bool = False
    trainings: tuple[str, ...] = ()
    flag: str = ""
    value: str = ""

    def comparisons(self, sides: Sides, dtype: str) -> Iterator[Comparison]:
        """Yield what it compares."""
        if self.of_facts:
            yield from self.check(*sides.facts())
        elif not self.trainings:
            yield from self.check(sides, dtype)
        for training in self.trainings:
            ours, theirs = sides.trace(training, dtype)
            exact = None if dtype == "float64" else sides.reference(training, "float64")
            yield from checks.labelled(training, self.check(ours, theirs, exact))


_FACTS: dict[str, Any] = {"dtypes": ("float32",), "of_facts": True}

LIST = (
    Rung(
        1,
        "data",
        "images, labels, scaled pixels, one-hot rows; order and size of the batches",
        checks.data,
        "look at how the data module scales pixels, codes labels and draws the order of the images",
        **_FACTS,
    ),
    Rung(
        2,
        "structure",
        "layer names and order, output shapes, parameter counts, dtype",
        checks.structure,
        "look at the layer stack: names, padding, sizes",
        **_FACTS,
    ),
    Rung(
        3,
        "initialisation",
        "20 seeds: distance from Glorot uniform; independent; zero biases",
        checks.initialisation,
        "look at how the start weights are drawn: Keras draws kernels Glorot uniform and sets biases to zero",
        **_FACTS,
    ),
    Rung(
        4,
        "weight transfer",
        "into the model and back, both sides; from .keras and .weights.h5 files",
        checks.weight_transfer,
        "look at from_keras and to_keras: kernels are transposed, and flattening goes H, W, C in Keras",
    ),
    Rung(
        5,
        "forward",
        "what every layer gives: ordinary images and edge cases",
        checks.forward,
        "look at the layer named, or at the activation function of the one before it, or at the flatten order",
        trainings=("cases", "saturated"),
    ),
    Rung(
        6,
        "loss",
        "the same images",
        checks.loss,
        "the layers agree, the loss does not: look at its reduction, at softmax and at label smoothing",
        trainings=("cases", "saturated"),
    ),
    Rung(
        7,
        "gradients",
        "every tensor: the same images, start weights and trained ones",
        checks.gradients,
        "the loss agrees, its gradient does not: look for detached tensors, scaling or noise; if it agrees at step 0, "
        "for a parameter that the optimizer does not hold, whose gradients pile up",
        trainings=("cases", "saturated", "tied", "trained"),
    ),
    Rung(
        8,
        "optimizer",
        "weights, m and v after 1, 6, 7, 10 and 18 steps",
        checks.optimizer,
        "gradients of given weights agree, the update does not: look at epsilon, betas, learning rate, weight decay "
        "and clipping; if it agrees at step 0, at schedules and at what the optimizer forgets between epochs",
        trainings=("short", "saturated"),
    ),
    Rung(
        9,
        "trajectory",
        "every step's loss and accuracy; final weights, m, v, test probabilities",
        checks.trajectory,
        "single steps agree, the training does not: look at what changes over time, schedules or state",
        trainings=("short", "long"),
    ),
    Rung(
        10,
        "history",
        "loss and accuracy as reported for each epoch and for the test images",
        checks.history,
        "the steps agree, the report does not: look at how batches are averaged over an epoch; less than 1e-7 off in "
        "float64 is a value that was logged in 32 bits",
        trainings=("short", "long"),
    ),
    Rung(
        11,
        "distribution",
        "test accuracy and loss over seeds: 90 % interval of the difference of means",
        checks.distribution,
        "given batches agree, trainings of its own do not: look at the order of the images and the start weights",
        dtypes=("float32",),
        flag="seeds",
        value="20",
    ),
    Rung(
        12,
        "devices",
        "training on 2, 3 and 4 CPU processes against Keras on one",
        checks.devices,
        "one device agrees, several do not: look at how batches, averages and test images are shared out, and whether "
        "all devices draw one order",
        dtypes=("float64",),
        flag="devices",
        value="true",
    ),
    Rung(
        13,
        "resume",
        "killed within an epoch and resumed, on 1, 2 and 3 processes",
        checks.resume,
        "it agrees if nothing happens: look at what a checkpoint holds: m, v, t, place in the epoch, running sums",
        dtypes=("float64",),
        flag="resume",
        value="true",
    ),
)
RUNGS = {rung.number: rung for rung in LIST}
USUAL = [rung.number for rung in LIST if not rung.flag]  # climbed without being asked for


@dataclass(frozen=True)
class Verdict:
    """What a rung says: its comparisons, in the order of looking."""

    rung: Rung
    dtype: str
    comparisons: tuple[Comparison, ...]

    @property
    def holds(self) -> bool:
        return all(comparison.holds for comparison in self.comparisons)

    @property
    def shown(self) -> Comparison:
        """The first comparison that does not hold, or else the one nearest to its tolerance."""
        failed = [comparison for comparison in self.comparisons if not comparison.holds]
        return failed[0] if failed else max(self.comparisons, key=lambda c: c.difference / (c.tolerance or np.inf))

    @property
    def figure(self) -> str:
        """How far the two sides are apart, and how far they may be."""
        if self.shown.tolerance == 0:
            return "equal" if self.holds else "not equal"
        unit = " x Keras' error" if self.dtype == "float32" and self.rung.trainings else ""
        return f"{self.shown.difference:.2g}{unit} of {self.shown.tolerance:g}"


def climb(sides: Sides, numbers: Iterable[int], dtype: Dtype = "both") -> Iterator[Verdict]:
    """Climb rungs one after the other, cheapest first; the caller stops when it has seen enough.

    Args:
        sides: that are compared.
        numbers: of the rungs.
        dtype: of the trainings.
    """
    rungs = [RUNGS[number] for number in sorted(numbers)]
    precisions = ("float64", "float32") if dtype == "both" else (dtype,)
    in_order = [(rung, rung.dtypes[0]) for rung in rungs if rung.of_facts]
    in_order += [(rung, precision) for precision in precisions for rung in rungs if len(rung.dtypes) > 1]
    in_order += [(rung, rung.dtypes[0]) for rung in rungs if rung.flag]
    for rung, precision in in_order:
        yield Verdict(rung, precision, tuple(rung.comparisons(sides, precision)))

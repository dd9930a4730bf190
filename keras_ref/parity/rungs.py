"""The rungs of the ladder, each one value in one list, and the climb from rung to rung."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from keras_ref.parity import checks
from keras_ref.parity.comparisons import OWN_ROUNDING, Comparison, NotChecked
from keras_ref.parity.golden import NotInGoldenError, placed
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import BRIEF, OTHER_COMPUTATION
from lit_mnist.trace.files import Arrays

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
        verdict: what it means for a port if it is the first that does not hold.
        dtypes: precisions in which it is climbed.
        of_facts: whether it compares facts.
        trainings: the trainings it looks at.
        of_training: whether it looks at a candidate's training step, which a plain module has not.
        flag: of the command, that asks for it; "" for a rung that is always climbed.
        value: of the flag, as an example.
    """

    number: int
    name: str
    compared: str
    check: Callable[..., checks.Found]
    hint: str
    dtypes: tuple[str, ...] = ("float64", "float32")
    verdict: str = "is another model than the original, or trains in another way"
    of_facts: bool = False
    trainings: tuple[str, ...] = ()
    of_training: bool = False
    flag: str = ""
    value: str = ""

    def comparisons(self, sides: Sides, dtype: str) -> checks.Found:
        """Yield what it compares, and what it could not look at."""
        if self.of_training and not sides.trains:
            yield NotChecked(self.compared, "the candidate is a plain nn.Module: how it trains is not known")
            return
        if sides.backend != "tensorflow" and (why := self._of_tensorflow(dtype)):
            yield NotChecked(f"{self.name} in {dtype}", why)
            return
        if self.of_facts:
            yield from self.check(*sides.facts())
        elif not self.trainings:
            try:
                yield from self.check(sides, dtype)
            except NotInGoldenError as error:
                yield NotChecked(f"{self.name} in {dtype}", str(error))
        trainings = self.trainings_of(sides, dtype)
        if "brief" in trainings and sides.steps > BRIEF:
            beyond = "by then both sides have roundings of their own; float64 has all steps"
            yield NotChecked(f"{self.name} in float32 beyond {BRIEF} steps", beyond)
        for training in trainings:
            if training == "trained" and not sides.trains:
                continue
            try:
                ours, theirs = sides.trace(training, dtype)
                exact = None if dtype == "float64" else sides.reference(training, "float64")
                unrounded = sides.unrounded(training) if dtype == "float64" else None
            except NotInGoldenError as error:
                yield NotChecked(f"{self.name} of the training {training} in {dtype}", str(error))
                continue
            if why := self._other_computation(sides, training, theirs, exact):
                yield NotChecked(f"{self.name} of the training {training}", why)
                continue
            found = list(checks.labelled(training, placed(self.check(ours, theirs, exact, unrounded), theirs)))
            yield from found
            if not all(one.holds for one in found if isinstance(one, Comparison)):
                return  # the first divergence is there; what other trainings say does not change it

    def trainings_of(self, sides: Sides, dtype: str) -> tuple[str, ...]:
        """Return the trainings it looks at: of another model in float32, the first steps in place of the long one."""
        in_float32 = sides.data and dtype == "float32"
        return tuple("brief" if in_float32 and name == "long" else name for name in self.trainings)

    def _of_tensorflow(self, dtype: str) -> str:
        """Return why it is not climbed with Keras on another backend; "" if it is."""
        if self.of_facts:
            return "each backend of Keras draws start weights and orders in its own way; climb on TensorFlow for it"
        if self.flag or dtype == "float64":
            return "Keras keeps float64 on TensorFlow alone"
        return ""

    def _other_computation(self, sides: Sides, training: str, theirs: Arrays, exact: Arrays | None) -> str:
        """Return why a training of Keras on another backend is nothing to hold a port against; "" if it is."""
        if sides.backend == "tensorflow":
            return ""
        of_tensorflow = sides.of(sides.candidate, backend="tensorflow").reference(training, "float32")
        compared = [one for one in self.check(theirs, of_tensorflow, exact, None) if isinstance(one, Comparison)]
        worst = max(compared, key=lambda one: one.difference)
        if worst.difference <= OTHER_COMPUTATION:
            return ""
        times = f"{worst.difference:.2g} times as far from Keras' float64 run as Keras on TensorFlow"
        return f"{worst.what} of Keras on {sides.backend} is {times}: that is another computation"


_FACTS: dict[str, Any] = {"dtypes": ("float32",), "of_facts": True}

LIST = (
    Rung(
        1,
        "data",
        "examples and targets as they reach the model; order and size of the batches",
        checks.data,
        "look at how the port scales its inputs, codes its targets and draws the order of an epoch",
        verdict="trains on other data than the original, or in another order",
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
        "20 seeds: each tensor drawn from the same distribution on both sides; independent",
        checks.initialisation,
        "look at how the start weights are drawn: unless told otherwise, Keras draws kernels Glorot uniform and sets "
        "biases to zero",
        **_FACTS,
    ),
    Rung(
        4,
        "weight transfer",
        "into the model and back, both sides; of the documented model from files of Keras, too",
        checks.weight_transfer,
        "look at from_keras and to_keras: kernels are transposed, and flattening goes H, W, C in Keras",
    ),
    Rung(
        5,
        "forward",
        "what every layer gives: single steps from start weights, large ones and trained ones",
        checks.forward,
        "look at the layer named, or at the activation function of the one before it, or at the flatten order",
        trainings=("cases", "saturated", "trained"),
    ),
    Rung(
        6,
        "loss",
        "the same steps, with what regularises it",
        checks.loss,
        "the layers agree, the loss does not: look at its reduction, at softmax and at label smoothing",
        trainings=("cases", "saturated", "trained"),
        of_training=True,
    ),
    Rung(
        7,
        "gradients",
        "every tensor: the same steps",
        checks.gradients,
        "the loss agrees, its gradient does not: look for detached tensors, scaling or noise; if it agrees at step 0, "
        "for a parameter that the optimizer does not hold, whose gradients pile up",
        trainings=("cases", "saturated", "tied", "trained"),
        of_training=True,
    ),
    Rung(
        8,
        "optimizer",
        "weights, what is not trained and what the optimizer keeps, after 1, 6, 7, 10 and 18 steps",
        checks.optimizer,
        "gradients of given weights agree, the update does not: look at epsilon, betas, learning rate, weight decay "
        "and clipping; if it agrees at step 0, at schedules and at what the optimizer forgets between epochs",
        trainings=("short", "saturated"),
        of_training=True,
    ),
    Rung(
        9,
        "trajectory",
        "every step's loss; final weights, what the optimizer keeps, predictions for the tests",
        checks.trajectory,
        "single steps agree, the training does not: look at what changes over time, schedules or state",
        trainings=("short", "long"),
        of_training=True,
    ),
    Rung(
        10,
        "history",
        "loss and metrics as reported for each epoch and for the tests",
        checks.history,
        "the steps agree, the report does not: look at how batches are averaged over an epoch; less than 1e-7 off in "
        "float64 is a value that was logged in 32 bits",
        verdict="trains as the original does in every step that was run; what it reports of them differs",
        trainings=("short", "long"),
        of_training=True,
    ),
    Rung(
        11,
        "distribution",
        "test results over seeds: 90 % interval of the difference of means; their spread",
        checks.distribution,
        "too few trainings cannot show what is equal to be so: 20 or more can; if it stays, look at the order of the "
        "examples and the start weights: given batches agree, trainings of its own do not",
        verdict="is not shown to end as the original does, over seeds",
        dtypes=("float32",),
        of_training=True,
        flag="seeds",
        value="20",
    ),
    Rung(
        12,
        "devices",
        "training on 2, 3 and 4 CPU processes against Keras on one",
        checks.devices,
        "one device agrees, several do not: look at how batches, averages and test examples are shared out, at whether "
        "all devices draw one order, and at layers that look at their own share alone, as batch normalisation does",
        dtypes=("float64",),
        of_training=True,
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
        of_training=True,
        flag="resume",
        value="true",
    ),
)
RUNGS = {rung.number: rung for rung in LIST}
USUAL = [rung.number for rung in LIST if not rung.flag]  # climbed without being asked for


@dataclass(frozen=True)
class Verdict:
    """What a rung says: its comparisons, in the order of looking, and what it did not look at."""

    rung: Rung
    dtype: str
    comparisons: tuple[Comparison, ...]
    not_checked: tuple[NotChecked, ...] = ()

    @property
    def was_run(self) -> bool:
        return bool(self.comparisons)

    @property
    def holds(self) -> bool:
        """Whether nothing that was looked at differs; a rung that was not run neither holds nor fails."""
        return all(comparison.holds for comparison in self.comparisons)

    @property
    def shown(self) -> Comparison:
        """The first comparison that does not hold, or else the one nearest to its tolerance."""
        failed = [comparison for comparison in self.comparisons if not comparison.holds]
        return failed[0] if failed else max(self.comparisons, key=lambda c: c.difference / (c.tolerance or np.inf))

    @property
    def figure(self) -> str:
        """How far the two sides are apart, and how far they may be."""
        if not self.was_run:
            return "not run"
        if self.shown.tolerance == 0:
            return "equal" if self.holds else "not equal"
        unit = " x Keras' error" if self.dtype == "float32" and self.rung.trainings else ""
        against = f" ({self.shown.against})" if self.shown.against else ""
        figure = f"{self.shown.difference:.2g}{unit} of {self.shown.tolerance:.3g}{against}"
        if not (self.holds and self.within_own_rounding):
            return figure
        widest = max(one.tolerance for one in self.within_own_rounding)
        return f"{figure}; {len(self.within_own_rounding)} of {len(self.comparisons)} within up to {widest:.2g}"

    @property
    def within_own_rounding(self) -> list[Comparison]:
        """What is farther apart than 1e-12 and holds because Keras itself rounds: seen less sharply than the rest."""
        return [one for one in self.comparisons if one.holds and one.against == OWN_ROUNDING]


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
    told = False
    for rung, precision in in_order:
        if not (told or rung.of_facts or rung.flag):
            told = True  # and not before: a port that is stopped by its facts needs no training
            for one in precisions:
                look_ahead(sides, rungs, one)
        found = list(rung.comparisons(sides, precision))
        compared = tuple(one for one in found if isinstance(one, Comparison))
        not_checked = {one.what: one for one in found if isinstance(one, NotChecked)}
        yield Verdict(rung, precision, compared, tuple(not_checked.values()))


def look_ahead(sides: Sides, rungs: Iterable[Rung], dtype: str) -> None:
    """Have Keras' traces for some rungs made ahead, the longest first."""
    trainings = dict.fromkeys(training for rung in rungs for training in rung.trainings_of(sides, dtype))
    in_order = sorted(trainings, key=lambda training: training != "long")
    sides.look_ahead("theirs", in_order, ["float64"] if dtype == "float64" else ["float64", "float32"])

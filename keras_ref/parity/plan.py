"""Which trainings each rung of the ladder needs, and the climb from rung to rung."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from keras_ref.data import load_data
from keras_ref.parity import ladder
from keras_ref.parity.ladder import Arrays, Comparison
from keras_ref.parity.recorded import recorded
from keras_ref.parity.workers import Workers
from lit_mnist.trace.files import WEIGHTS, TraceInputs

RUNGS = {  # name, what is compared
    1: ("data", "images, labels, scaled pixels, one-hot rows; order and size of the batches"),
    2: ("structure", "layer names and order, output shapes, parameter counts, dtype"),
    3: ("initialisation", "20 seeds: distance from Glorot uniform; independent; zero biases"),
    4: ("weight transfer", "into the model and back, both sides; from .keras and .weights.h5 files"),
    5: ("forward", "what every layer gives: ordinary images and edge cases"),
    6: ("loss", "the same images"),
    7: ("gradients", "every tensor: the same images, start weights and trained ones"),
    8: ("optimizer", "weights, m and v after 1, 6, 7, 10 and 18 steps"),
    9: ("trajectory", "every step's loss and accuracy; final weights, m, v, test probabilities"),
    10: ("history", "loss and accuracy as reported for each epoch and for the test images"),
    11: ("distribution", "test accuracy and loss over seeds: 90 % interval of the difference of means"),
    12: ("devices", "training on 2, 3 and 4 CPU processes against Keras on one"),
    13: ("resume", "killed within an epoch and gone on with, on 1, 2 and 3 processes"),
}
FIRST_OPTIONAL = 11  # from here on, a rung is climbed if it is asked for
DEVICES = ((2, "short"), (3, "thirds"), (4, "short"), (2, "long"), (4, "long"))
RESUMED = ((1, "short"), (2, "short"), (3, "thirds"), (1, "long"), (2, "long"))
BATCH_SIZE = 100
STEPS_PER_EPOCH = 600
STEPS = 6_000  # of the documented training
Dtype = Literal["both", "float64", "float32"]


@dataclass(frozen=True)
class Verdict:
    """What a rung found: its comparisons in the order of looking; none if it was not run."""

    number: int
    dtype: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def holds(self) -> bool:
        return all(comparison.holds for comparison in self.comparisons)

    @property
    def in_units_of_keras_error(self) -> bool:
        return self.dtype == "float32" and 4 < self.number < 11

    @property
    def shown(self) -> Comparison:
        """The first comparison that does not hold, or else the one nearest to its tolerance."""
        failed = [comparison for comparison in self.comparisons if not comparison.holds]
        return failed[0] if failed else max(self.comparisons, key=lambda c: c.difference / (c.tolerance or np.inf))


def climb(
    workers: Workers, rungs: Iterable[int], steps: int = 600, seed: int = 0, dtype: Dtype = "both", seeds: int = 0
) -> Iterator[Verdict]:
    """Climb the rungs one after the other, cheapest first; the caller stops when it has seen enough.

    Args:
        workers: who records.
        rungs: numbers from 1 to 13.
        steps: of the trajectory.
        seed: decides start weights and batches.
        dtype: of the trainings.
        seeds: how many trainings of the candidate rung 11 takes.
    """
    rungs = sorted(rungs)
    facts_rungs = {1: ladder.data, 2: ladder.structure, 3: ladder.initialisation}
    for number in rungs:
        if number in facts_rungs:
            yield Verdict(number, "float32", tuple(facts_rungs[number](*workers.facts())))

    plan = Plan(workers, steps, seed)
    for precision in ("float64", "float32"):
        if dtype not in ("both", precision):
            continue
        for number in rungs:
            if number == 4:
                yield Verdict(4, precision, tuple(plan.weight_transfer(precision)))
            elif 4 < number < 11:
                yield Verdict(number, precision, tuple(plan.compare(number, precision)))
    if 11 in rungs:
        yield Verdict(11, "float32", tuple(ladder.distribution(workers.results("ours", seeds), recorded()["keras"])))
    if 12 in rungs:
        yield Verdict(12, "float64", tuple(plan.devices()))
    if 13 in rungs:
        yield Verdict(13, "float64", tuple(plan.resumed()))


class Plan:
    """Which trainings a rung needs, and which of what they recorded it compares.

    - cases: images that are not ordinary (all zero, pool ties, noise, one alone, a short batch), learning rate zero;
    - saturated: the same with an output kernel so large that probabilities round to zero and one;
    - short: 18 steps in 3 epochs with a short last batch, for single steps of the optimizer (the last of an epoch and
      the first of the next among them) and for the history;
    - long: the trajectory;
    - thirds: as short, with batches that divide among three devices;
    - trained: the cases once more, from the weights at the end of Keras' trajectory.
    """

    RUNGS = {  # noqa: RUF012  # rung: (its comparison, the trainings it looks at)
        5: (ladder.forward, ("cases", "saturated")),
        6: (ladder.loss, ("cases", "saturated")),
        7: (ladder.gradients, ("cases", "saturated", "trained")),
        8: (ladder.optimizer, ("short", "saturated")),
        9: (ladder.trajectory, ("short", "long")),
        10: (ladder.history, ("short", "long")),
    }

    def __init__(self, workers: Workers, steps: int, seed: int) -> None:
        self.workers, self.steps, self.seed = workers, steps, seed

    def compare(self, number: int, dtype: str) -> Iterator[Comparison]:
        comparison, trainings = self.RUNGS[number]
        for training in trainings:
            ours, theirs = self.trace(training, dtype)
            exact = None if dtype == "float64" else self.workers.theirs(self.inputs(training, "float64"))
            yield from named(training, comparison(ours, theirs, exact))

    def weight_transfer(self, dtype: str) -> Iterator[Comparison]:
        inputs = self.inputs("cases", dtype)
        ours, theirs = self.trace("cases", dtype)
        files = self.workers.saved(inputs)
        loaded = {"ours": ours, "theirs": theirs} | {
            f"ours, from a {name} file": self.workers.loaded(path) for name, path in files.items()
        }
        return ladder.weight_transfer({f"weights/{key}": array for key, array in inputs.weights.items()}, loaded)

    def trace(self, training: str, dtype: str) -> tuple[Arrays, Arrays]:
        """Return the records of a training, ours and theirs."""
        return self.workers.both(self.inputs(training, dtype), f"{training} training in {dtype}")

    def inputs(self, training: str, dtype: str) -> TraceInputs:
        rng = np.random.default_rng([self.seed, 1])
        weights = glorot_uniform(rng, dtype)
        if training in ("cases", "saturated", "trained"):
            if training == "saturated":
                weights["output/kernel"] *= 100
            if training == "trained":
                # Of both, though ours is only wanted later: they run side by side.
                _, final = self.trace("long", "float64")
                weights = {key: final[f"weights/{key}"].astype(np.float32).astype(dtype) for key in WEIGHTS}
            directory = self.workers.directory / "cases"
            batches = write_cases(directory, self.workers.data_dir)
            every = np.arange(len(batches))
            return TraceInputs("", dtype, weights, batches, 0.0, len(batches), every, str(directory), False)
        data_dir = self.workers.data_dir
        if training in ("short", "thirds"):
            images = rng.permutation(60_000)[: 3 * 700].reshape(3, 700)
            if training == "thirds":
                images = images[:, :660]
            batches = np.concatenate([rows(epoch, 120 if training == "thirds" else 128) for epoch in images])
            return TraceInputs("", dtype, weights, batches, 0.003, 6, np.array([0, 5, 6, 9, 17]), data_dir)
        epochs = -(-self.steps // STEPS_PER_EPOCH)
        batches = np.concatenate([rows(rng.permutation(60_000), BATCH_SIZE) for _ in range(epochs)])[: self.steps]
        per_epoch = min(self.steps, STEPS_PER_EPOCH)
        return TraceInputs("", dtype, weights, batches, 0.001, per_epoch, np.array([], dtype=np.int64), data_dir)

    def devices(self) -> Iterator[Comparison]:
        """Compare our training on several devices with Keras' on one, in float64, up to the first that differs."""
        # A trace brings its own order. Devices that each draw another one would miss images and see others twice.
        facts, _ = self.workers.facts()
        order = Comparison("the order of the images, drawn again with the same seed", float(not facts["same_order"]), 0)
        yield order
        if not order.holds:
            return
        for devices, training in DEVICES:
            inputs = self.inputs(training, "float64")
            found = self._compare_with_keras(inputs, self.workers.on_devices(inputs, devices))
            yield from named(f"{devices} devices: {training}", found)
            if not all(one.holds for one in found):
                return

    def resumed(self) -> Iterator[Comparison]:
        """Compare trainings that were killed within an epoch with Keras', and to the bit with those that were not."""
        for devices, training in RESUMED:
            inputs = self.inputs(training, "float64")
            ours = self.workers.on_devices(inputs, devices, kill_after=len(inputs.batches) * 5 // 9)
            found = self._compare_with_keras(inputs, ours)
            if all(one.holds for one in found):
                found += ladder.same(ours, self.workers.on_devices(inputs, devices))
            yield from named(f"{devices} device{'s' * (devices > 1)}: {training}", found)
            if not all(one.holds for one in found):
                return

    def _compare_with_keras(self, inputs: TraceInputs, ours: Arrays) -> list[Comparison]:
        theirs = self.workers.theirs(inputs)
        return [*ladder.trajectory(ours, theirs), *ladder.history(ours, theirs)]


def named(training: str, found: Iterable[Comparison]) -> Iterator[Comparison]:
    """Put before each comparison of which training it is."""
    return (replace(one, what=f"{training}: {one.what}") for one in found)


def rows(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Cut an epoch into batches, the last padded with -1: [S, batch_size]."""
    padding = -len(images) % batch_size
    return np.concatenate([images, np.full(padding, -1)]).reshape(-1, batch_size).astype(np.int64)


def glorot_uniform(rng: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    """Draw start weights, to float32 so that both precisions start from the same ones."""
    weights = {}
    for key, shape in WEIGHTS.items():
        bound = ladder.glorot_bound(shape) if key.endswith("kernel") else 0.0
        weights[key] = rng.uniform(-bound, bound, shape).astype(np.float32).astype(dtype)
    return weights


def write_cases(directory: Path, data_dir: str) -> np.ndarray:
    """Write a data set in MNIST's format with images that are not ordinary; return batches of it, [7, 100]."""
    mnist = load_data(data_dir)
    ties = np.kron(np.arange(0, 196).reshape(14, 14), np.ones((2, 2))).astype(np.uint8)  # equal in each pool window
    noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    blank = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])
    images = np.concatenate([mnist.train_images[:100], blank, ties[None], noise])
    labels = np.arange(len(images), dtype=np.uint8) % 10
    (directory / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            lengths = np.array(array.shape, ">u4").tobytes()
            header = bytes([0, 0, 8, array.ndim]) + lengths
            (directory / "MNIST" / "raw" / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    chosen = [range(100), [100], [101], [102], [103, 104, 105], [7], range(37)]
    batches = [np.pad(np.asarray(rows), (0, 100 - len(rows)), constant_values=-1) for rows in chosen]
    return np.stack(batches).astype(np.int64)

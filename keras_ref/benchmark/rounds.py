"""The rounds of a benchmark, and how ours grows."""

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from keras_ref.benchmark.contestants import BATCH_SIZE, CONTESTANTS, OURS, Contestant, environment
from keras_ref.benchmark.findings import Round, apart, comparison, spread, targets
from keras_ref.benchmark.measure import Training, figures, training, write_data
from keras_ref.data import MNIST

PREDICTORS = {OURS: "lit_mnist.benchmark.predict", "tensorflow": "keras_ref.benchmark.predict"}
WHOLE = 60_000  # images of an epoch
BATCH_SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
PROCESSES = (1, 2, 4)
TIMES_MNIST = (1, 2, 5, 10, 20)


class Turns(Protocol):
    """Who is told what is done next; `turns` is the number of all."""

    def __call__(self, what: str, turns: int) -> None: ...


@dataclass(frozen=True)
class Places:
    """Where contestants run.

    Args:
        directory: for data and what they leave; somebody else removes it.
        threads: of each.
        turns: is told what is done next.
        accelerator: "cpu" or "gpu".
    """

    directory: Path
    threads: int
    turns: Turns
    accelerator: str = "cpu"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def train(self, contestant: Contestant, data: Path, epochs: int, batch_size: int = BATCH_SIZE) -> Training:
        """Run a contestant; what it leaves stays in `of(contestant)` until it is run again."""
        output = self.of(contestant)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        variables = environment(self.threads, contestant.environment, self.accelerator)
        return training(contestant.command(data, epochs, batch_size, output, self.accelerator), variables)

    def of(self, contestant: Contestant) -> Path:
        """Return where a contestant leaves its results."""
        return self.directory / contestant.name

    def ask(self, module: str, *flags: object) -> dict[str, Any]:
        """Return the figures that a module of ours prints."""
        command = [sys.executable, "-m", module, *map(str, flags)]
        return figures(command, environment(self.threads, {"KERAS_BACKEND": "tensorflow"}, self.accelerator))


def play(
    places: Places, contestants: Sequence[Contestant], rounds: int, epochs: int, images: int
) -> Iterator[dict[str, Any]]:
    """Run every contestant once in each round, the first of a round last in the next.

    Yields, after each round, what has come out of all rounds so far.

    On a GPU there are neither targets, which are a CPU's, nor the parts of a step, which it does while nobody waits.
    """
    played, steps, floors, device = [], [], [], ""
    on_cpu = places.accelerator == "cpu"
    predictors = [one for one in contestants if one.name in PREDICTORS]
    turns = rounds * (len(contestants) + len(predictors) + 2 * on_cpu)
    for number in range(rounds):
        first = number % len(contestants)
        trainings, predicting = {}, {}
        for one in (*contestants[first:], *contestants[:first]):
            places.turns(f"round {number + 1} of {rounds}: {one.title}", turns)
            trainings[one.name] = places.train(one, places.data, epochs)
        for one in predictors:
            places.turns(f"round {number + 1} of {rounds}: {one.title} predicts", turns)
            model = places.of(one) / ("run" if one.name == OURS else "model.keras")
            flags = ["--data_dir", places.data, "--model", model]
            flags += ["--accelerator", places.accelerator] if one.name == OURS else []
            said = places.ask(PREDICTORS[one.name], *flags)
            predicting[one.name], device = float(said["warm"]), said.get("device", device)
        if on_cpu:
            places.turns(f"round {number + 1} of {rounds}: the floor", turns)
            floors.append(places.ask("lit_mnist.benchmark.floor"))
            places.turns(f"round {number + 1} of {rounds}: where a step goes", turns)
            steps.append(places.ask("lit_mnist.benchmark.step", "--data_dir", places.data))
        played.append(Round(trainings, float(floors[-1]["floor"]) if on_cpu else math.nan, images, predicting))
        yield summary(played, steps, floors, images) | {"device": device}


def summary(
    played: Sequence[Round], steps: Sequence[dict[str, float]], floors: Sequence[dict[str, float]], images: int
) -> dict[str, Any]:
    """Return what rounds have in common; without parts of a step and floors, nothing of targets."""
    rows = comparison(played)
    return {
        "targets": targets(played) if floors else [],
        "contestants": rows,
        "apart": apart(rows) if images == WHOLE else [],  # of fewer images, chance decides
        "step": {name: vars(spread([one[name] for one in steps])) for name in (steps[0] if steps else ())},
        "floor": {name: vars(spread([one[name] for one in floors])) for name in (floors[0] if floors else ())},
        "rounds": [
            {
                "trainings": {name: vars(one) for name, one in played_round.trainings.items()},
                "predicting": dict(played_round.predicting),
            }
            for played_round in played
        ],
    }


def grow(places: Places, mnist: MNIST, epochs: int) -> dict[str, Any]:
    """Measure ours over sizes of the batch, numbers of processes and sizes of the data set; return what came out."""
    ours, tensorflow = CONTESTANTS[:2]
    sides = [ours, tensorflow] if tensorflow.is_installed() else [ours]
    turns = len(sides) * len(BATCH_SIZES) + len(PROCESSES) + len(TIMES_MNIST)
    growth: dict[str, list[dict[str, Any]]] = {"batch": [], "processes": [], "images": []}
    images = len(mnist.train_images)
    write_data(mnist, images, places.data)
    for size in BATCH_SIZES:
        for side in sides:
            places.turns(f"{side.title}: batches of {size:,}", turns)
            measured = places.train(side, places.data, epochs, size)
            growth["batch"].append(point(side.name, size, measured, images))
    single = replace(places, threads=1)
    for processes in PROCESSES:
        places.turns(f"{processes} processes, one thread each", turns)
        several = replace(ours, flags=(*ours.flags, "--devices", str(processes)))
        measured = single.train(several, places.data, epochs)
        growth["processes"].append(point(OURS, processes, measured, images))
    for times in TIMES_MNIST:
        places.turns(f"{times} x {images:,} images", turns)
        larger = places.directory / "larger"
        shutil.rmtree(larger, ignore_errors=True)
        write_data(mnist, times * images, larger)
        growth["images"].append(point(OURS, times, places.train(ours, larger, epochs), times * images))
    return {"growth": growth}


def point(name: str, value: int, measured: Training, images: int) -> dict[str, Any]:
    """Return one point of a plot."""
    return {
        "name": name,
        "value": value,
        "epoch": measured.warm,
        "images_per_second": images / measured.warm,
        "no_training": measured.no_training,
        "memory": measured.memory,
        "test_accuracy": measured.test_accuracy,
    }

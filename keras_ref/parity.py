"""python -m keras_ref.parity: prove or refute that a port trains exactly as the documented Keras model does."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from keras_ref import ladder
from keras_ref.data import load_data
from keras_ref.ladder import Arrays, Comparison
from lit_mnist.cli import InputError, run
from lit_mnist.trace_files import WEIGHTS, TraceInputs, digest, read_arrays

RUNGS = {
    1: "data",
    2: "structure",
    3: "initialisation",
    4: "weight transfer",
    5: "forward",
    6: "loss",
    7: "gradients",
    8: "optimizer",
    9: "trajectory",
    10: "history",
    11: "distribution",
}
# Where to look when a rung is the first that does not hold.
HINTS = {
    1: "look at how the data module scales pixels, codes labels and draws the order of the images",
    2: "look at the layer stack: names, padding, sizes",
    3: "look at how the start weights are drawn: Keras draws kernels Glorot uniform and sets biases to zero",
    4: "look at from_keras and to_keras: kernels are transposed, and flattening goes H, W, C in Keras",
    5: "look at the layer named, or at the activation function of the one before it, or at the flatten order",
    6: "the layers agree, the loss does not: look at its reduction, at softmax and at label smoothing",
    7: "the loss agrees, its gradient does not: look for detached tensors, scaling, clipping or noise",
    8: "gradients agree, the update does not: look at the optimizer's epsilon, betas, learning rate and weight decay",
    9: "single steps agree, the training does not: look at what changes over time, schedules or state",
    10: "the steps agree, the report does not: look at how batches are averaged over an epoch",
}
SIDES = {"ours": "lit_mnist", "theirs": "keras_ref"}
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
BATCH_SIZE = 100
STEPS_PER_EPOCH = 600


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
    def shown(self) -> Comparison:
        """The first comparison that does not hold, or else the one nearest to its tolerance."""
        failed = [comparison for comparison in self.comparisons if not comparison.holds]
        return failed[0] if failed else max(self.comparisons, key=lambda c: c.difference / (c.tolerance or np.inf))


def parity(
    candidate: str = "lit_mnist:LitMNIST",
    rungs: list[int] | None = None,
    steps: PositiveInt = 600,
    seed: NonNegativeInt = 0,
    dtype: Literal["both", "float64", "float32"] = "both",
    data_dir: str = "data",
) -> int:
    """Prove or refute that a port trains exactly as the documented Keras model does, rung by rung.

    Both sides train on the same batches from the same weights, each in a process of its own; what they recorded is
    compared. The ladder stops at the first rung that does not hold and says where to look. Exit code 0 if all rungs
    hold, 1 if one does not, 2 if it could not be run.

    Args:
        candidate: The port, a LightningModule, as package.module:Class (lit_mnist/recording.py says what it offers).
        rungs: Numbers of the rungs to climb, as in [1,2,5]; null takes 1 to 10.
        steps: Length of the trajectory; the documented training has 6000.
        seed: Decides start weights and batches.
        dtype: Precision of the training. In float32 our error against Keras' float64 run is held against Keras' own.
        data_dir: Where the data set is; if it is not there, the files that ship with lit_mnist are used.
    """
    wanted = sorted(set(rungs or range(1, 11)))
    if not set(wanted) <= set(range(1, 11)):
        raise InputError(f"--rungs {rungs}: expected numbers from 1 to 10")
    if steps > STEPS_PER_EPOCH and steps % STEPS_PER_EPOCH:
        raise InputError(f"--steps {steps}: expected at most {STEPS_PER_EPOCH}, or whole epochs of as many")

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    verdicts: list[Verdict] = []
    with (
        tempfile.TemporaryDirectory(prefix="parity-") as directory,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("")
        workers = Workers(candidate, Path(directory), data_dir, lambda doing: progress.update(task, description=doing))
        for verdict in climb(workers, wanted, steps, seed, dtype):
            verdicts.append(verdict)
            console.print(line(verdict), soft_wrap=True, highlight=False)
            if not verdict.holds:
                break
    console.print(conclusion(verdicts, wanted, candidate), soft_wrap=True, highlight=False)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def climb(
    workers: "Workers", rungs: Iterable[int], steps: int, seed: int, dtype: Literal["both", "float64", "float32"]
) -> Iterator[Verdict]:
    """Climb the rungs one after the other, cheapest first; the caller stops when it has seen enough."""
    rungs = list(rungs)
    facts_rungs = {1: ladder.data, 2: ladder.structure, 3: ladder.initialisation}
    for number in rungs:
        if number in facts_rungs:
            yield Verdict(number, "", tuple(facts_rungs[number](*workers.facts())))

    plan = Plan(workers, steps, seed)
    for precision in ("float64", "float32"):
        if dtype not in ("both", precision):
            continue
        for number in rungs:
            if number == 4:
                cases = plan.inputs("cases", precision)
                given = {f"weights/{key}": array for key, array in cases.weights.items()}
                yield Verdict(4, precision, tuple(ladder.weight_transfer(given, *workers.both(cases))))
            elif number > 4:
                yield Verdict(number, precision, tuple(plan.compare(number, precision)))


class Plan:
    """Which trainings a rung needs, and which of what they recorded it compares.

    - cases: images that are not ordinary (all zero, pool ties, noise, one alone, a short batch), learning rate zero;
    - saturated: the same with an output kernel so large that probabilities round to zero and one;
    - short: 21 steps in 3 epochs with a short last batch, for single steps of the optimizer and for the history;
    - long: the trajectory;
    - trained: the cases once more, from the weights at the end of Keras' trajectory.
    """

    RUNGS = {  # noqa: RUF012  # rung: (its comparison, the trainings it looks at)
        5: (ladder.forward, ("cases", "saturated")),
        6: (ladder.loss, ("cases", "saturated")),
        7: (ladder.gradients, ("cases", "saturated", "trained")),
        8: (ladder.optimizer, ("short",)),
        9: (ladder.trajectory, ("short", "long")),
        10: (ladder.history, ("short", "long")),
    }

    def __init__(self, workers: "Workers", steps: int, seed: int) -> None:
        self.workers, self.steps, self.seed = workers, steps, seed

    def compare(self, number: int, dtype: str) -> Iterator[Comparison]:
        comparison, trainings = self.RUNGS[number]
        for training in trainings:
            ours, theirs = self.workers.both(self.inputs(training, dtype))
            exact = None if dtype == "float64" else self.workers.theirs(self.inputs(training, "float64"))
            for found in comparison(ours, theirs, exact):
                yield replace(found, what=f"{training}: {found.what}")

    def inputs(self, training: str, dtype: str) -> TraceInputs:
        rng = np.random.default_rng([self.seed, 1])
        weights = glorot_uniform(rng, dtype)
        if training in ("cases", "saturated", "trained"):
            if training == "saturated":
                weights["output/kernel"] *= 100
            if training == "trained":
                final = self.workers.theirs(self.inputs("long", "float64"))
                weights = {key: final[f"weights/{key}"].astype(np.float32).astype(dtype) for key in WEIGHTS}
            data_dir, batches = self.workers.cases()
            return TraceInputs("", dtype, weights, batches, 0.0, len(batches), np.arange(len(batches)), data_dir, False)
        data_dir = self.workers.data_dir
        if training == "short":
            images = rng.permutation(60_000)[: 3 * 700].reshape(3, 700)
            batches = np.concatenate([rows(epoch, 128)[:6] for epoch in images])
            return TraceInputs("", dtype, weights, batches, 0.003, 6, np.array([0, 9, 17]), data_dir)
        epochs = -(-self.steps // STEPS_PER_EPOCH)
        batches = np.concatenate([rows(rng.permutation(60_000), BATCH_SIZE) for _ in range(epochs)])[: self.steps]
        per_epoch = min(self.steps, STEPS_PER_EPOCH)
        return TraceInputs("", dtype, weights, batches, 0.001, per_epoch, np.array([], dtype=np.int64), data_dir)


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


class Workers:
    """Start a process for each framework, give it a file, read what it wrote; each training once.

    Args:
        candidate: the port.
        directory: for the files.
        data_dir: of MNIST.
        tell: called with what is being done.
    """

    def __init__(self, candidate: str, directory: Path, data_dir: str, tell: Callable[[str], None]) -> None:
        self.candidate, self.directory, self.data_dir, self.tell = candidate, directory, data_dir, tell
        self.done: dict[tuple[str, str], Arrays] = {}

    def facts(self) -> tuple[Arrays, Arrays]:
        """What each side is before it trains."""
        ours, theirs = self._run("facts", {side: ["--data_dir", self.data_dir] for side in SIDES}, run_id=None)
        return ours, theirs

    def both(self, inputs: TraceInputs) -> tuple[Arrays, Arrays]:
        """The records of a training, ours and theirs."""
        ours, theirs = self._trace(inputs, SIDES)
        return ours, theirs

    def theirs(self, inputs: TraceInputs) -> Arrays:
        """The record of a training in Keras."""
        return self._trace(inputs, ("theirs",))[-1]

    def cases(self) -> tuple[str, np.ndarray]:
        """A data set in MNIST's format of images that are not ordinary, and the batches to take of it."""
        mnist = load_data(self.data_dir)
        ties = np.kron(np.arange(0, 196).reshape(14, 14), np.ones((2, 2))).astype(np.uint8)  # equal in each pool window
        noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
        blank = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])
        images = np.concatenate([mnist.train_images[:100], blank, ties[None], noise])
        labels = np.arange(len(images), dtype=np.uint8) % 10
        directory = self.directory / "cases"
        (directory / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        for split in ("train", "t10k"):
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                lengths = np.array(array.shape, ">u4").tobytes()
                header = bytes([0, 0, 8, array.ndim]) + lengths
                (directory / "MNIST" / "raw" / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
        chosen = [range(100), [100], [101], [102], [103, 104, 105], [7], range(37)]
        batches = [np.pad(np.asarray(rows), (0, 100 - len(rows)), constant_values=-1) for rows in chosen]
        return str(directory), np.stack(batches).astype(np.int64)

    def _trace(self, inputs: TraceInputs, sides: Iterable[str]) -> tuple[Arrays, ...]:
        # The id is a digest of the inputs: what another training wrote can never be taken for this one's record.
        parts = replace(inputs, run_id="").arrays().values()
        run_id = str(digest(np.array([str(digest(array)) for array in parts])))
        path = self.directory / f"{run_id}-in.npz"
        replace(inputs, run_id=run_id).write(path)
        return self._run("trace", {side: ["--inputs", str(path)] for side in sides}, run_id)

    def _run(self, what: str, arguments: Mapping[str, list[str]], run_id: str | None) -> tuple[Arrays, ...]:
        started = {}
        for side, flags in arguments.items():
            if (side, run_id or what) in self.done:
                continue
            output = self.directory / f"{run_id or what}-{side}.npz"
            more = ["--candidate", self.candidate] if side == "ours" else []
            module = f"{SIDES[side]}.{what}"
            command = [sys.executable, "-m", module, *flags, "--output", str(output), *more]
            log = (self.directory / f"{run_id or what}-{side}.log").open("wb+")
            # Two processes side by side, a core each: threads of both on two cores would wait for one another.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | dict.fromkeys(THREAD_COUNTS, "1")
            )
            started[side] = (process, module, output, log)
        self.tell(f"{what}: " + " and ".join(module for _, module, _, _ in started.values()))
        try:
            for side, (process, module, output, log) in started.items():
                code = process.wait()
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()
                if code != 0:
                    raise InputError(f"{module} ended with code {code}: {said[-1] if said else 'it said nothing'}")
                arrays = read_arrays(output)
                if run_id is not None and str(arrays.get("run_id")) != run_id:
                    raise InputError(f"{output}: the record of another training ({arrays.get('run_id')})")
                self.done[side, run_id or what] = arrays
        finally:
            for process, _, _, log in started.values():
                process.kill()
                process.wait()
                log.close()
        return tuple(self.done[side, run_id or what] for side in arguments)


def line(verdict: Verdict) -> str:
    """Say in a line what a rung found."""
    shown = verdict.shown
    name = f"{verdict.number:>2} {RUNGS[verdict.number]:<16}{verdict.dtype:<8}"
    if shown.tolerance == 0:
        found = f"{len(verdict.comparisons)} equal" if verdict.holds else "not equal"
    else:
        found = f"{shown.difference:.1e} of at most {shown.tolerance:.3g}"
    return f"{name} {'holds' if verdict.holds else 'FAILS'}  {found:<26} {shown.what}"


def conclusion(verdicts: list[Verdict], wanted: list[int], candidate: str) -> str:
    """Say what all rungs together mean, and after a failure where to look."""
    last = verdicts[-1]
    if not last.holds:
        return (
            f"{candidate} is not the documented model, trained the same way. First divergence, rung {last.number} "
            f"({RUNGS[last.number]}{', ' + last.dtype if last.dtype else ''}): {last.shown.what}.\n"
            f"Hint: {HINTS[last.number]}."
        )
    climbed = f"rungs {', '.join(map(str, wanted))}"
    return f"{candidate} holds on {climbed}. Rung 11 (distribution over seeds) was not run."


if __name__ == "__main__":
    run(parity, prog="python -m keras_ref.parity")

"""python -m lit_mnist.train: train the documented model, evaluate it, leave a run directory behind."""

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lit_mnist.errors import InputError
from lit_mnist.runs.command import (
    BatchSize,
    Devices,
    LearningRate,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Seed,
    Share,
    run,
)
from lit_mnist.runs.directory import (
    create_run_directory,
    epochs_of_results,
    find_run_directory,
    hold_run_directory,
    plan_run_directory,
    result_lines,
    write_results,
)
from lit_mnist.runs.files import versions
from lit_mnist.runs.processes import (
    check_environment,
    check_processes,
    exit_with_parent,
    run_on_devices,
    started_by_agent,
    started_by_us,
    tell_parent,
)
from lit_mnist.runs.signals import SignalHandler

if TYPE_CHECKING:
    import lightning as L
    import numpy as np

    from lit_mnist.data import MNISTDataModule
    from lit_mnist.module import LitMNIST
    from lit_mnist.runs.checkpoints import Checkpoints
    from lit_mnist.runs.progress import EpochResults, TestOutputs

OF_EARLIER_RELEASES = {"--fused": False}  # settings that their checkpoints do not name


def train(
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    devices: Devices | Literal["auto"] = "auto",
    num_nodes: Devices = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    precision: Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true"] = "32-true",
    max_epochs: PositiveInt = 10,
    batch_size: BatchSize = 100,
    learning_rate: LearningRate = 0.001,
    seed: Seed = 0,
    data_dir: str = "data",
    verify_data: bool = True,
    validation_images: NonNegativeInt = 0,
    output_dir: str = "runs",
    run_name: str | None = None,
    logger: Literal["csv", "tensorboard", "mlflow", "wandb", "none"] = "csv",
    fast_dev_run: bool = False,
    limit_train_batches: PositiveInt | Share | None = None,
    deterministic: bool = False,
    fused: bool = True,
    checkpoint_every_n_steps: NonNegativeInt | None = None,
    resume: str | None = None,
    timeout: Seconds = 600,
) -> dict[str, Any]:
    """Train the documented MNIST classifier with PyTorch Lightning and evaluate it on the 10,000 test images.

    Without a flag it is the documented training: 10 epochs over all 60,000 images, 100 a step, Adam. The results are
    put into <output_dir>/<run_name>: config.yaml, metrics.csv, summary.json, three pictures, checkpoints.

    Args:
        accelerator: What to train on; auto takes a GPU if there is one.
        devices: How many of them; auto takes all GPUs, or one process on a CPU; with torchrun, its processes.
        num_nodes: How many machines.
        strategy: How several devices work together; auto chooses ddp for them.
        precision: Bits of the arithmetic; the mixed ones keep the weights in 32 bits.
        max_epochs: How often to go through the training images.
        batch_size: Images in a step, over all devices together.
        learning_rate: Learning rate of Adam.
        seed: Decides the start weights, the order of the images and which of them are held out.
        data_dir: Where the data set is; files that are not there are those that ship with this package.
        verify_data: Insist on MNIST's own files; false accepts other data in the same format.
        validation_images: How many training images to hold out and to evaluate after each epoch.
        output_dir: Where the directory of the run is made.
        run_name: Name of that directory; by default made of the date and time.
        logger: Who is told of loss and accuracy beside metrics.csv, which every run has. tensorboard writes event
            files; mlflow and wandb go where their own settings say (MLFLOW_TRACKING_URI, WANDB_MODE=offline); csv and
            none tell nobody.
        fast_dev_run: One batch of training and one of testing, to see that all works; writes no results.
        limit_train_batches: Batches in an epoch if it is 1 or more, else the share of them; null takes all.
        deterministic: Use only operations that give the same result each time, on a GPU too.
        fused: Compute convolution, ReLU and pooling at once on a CPU, which is faster; false leaves it to the layers.
        checkpoint_every_n_steps: Write a checkpoint after every so many steps too, not after each epoch only; 0 or null
            for none.
        resume: Resume the run of --output_dir and --run_name, from its last checkpoint that is whole (last) or from a
            named one (a path), with the flags that it was started with; --max_epochs may have grown.
        timeout: Seconds that several processes wait for one another, at the start and at each step, before the run ends
            with an error.

    Returns:
        What summary.json holds; the test results alone after a fast_dev_run.

    Raises:
        InputError: a wrong value or file; nothing was written.
    """
    plan = make_plan(dict(locals()))  # before any other variable is set: the flags and their values
    with contextlib.ExitStack() as held:
        parts = build(plan, held.enter_context(SignalHandler(plan.resume_line)))
        if parts.trainer.world_size > 1 and not started_by_agent():
            return train_on_all_devices(plan)
        if parts.trainer.is_global_zero:
            if plan.writes and plan.flags["resume"] is None:
                create_run_directory(plan.run_directory, plan.config)
            if plan.writes:
                held.enter_context(hold_run_directory(plan.run_directory))
            announce(plan, parts)
        try:
            summary, probabilities = fit_and_test(plan, parts)
            if parts.trainer.is_global_zero:
                write(plan, parts, summary, probabilities)
        except OSError as error:  # a full disk, a directory that has vanished
            raise OSError(f"{error}. {plan.resume_line()}".strip()) from error
    return summary


@dataclass(frozen=True)
class Plan:
    """What is to be done: all of it checked, nothing begun.

    Args:
        flags: of `train`, by name.
        accelerator: what "auto" stands for: "gpu", "mps" or "cpu".
        devices: number of them on this machine.
        run_directory: of the run.
        data: set up; its batches divide among the devices.
        settings: what a resumed training has to have in common with the one before, and what decides it.
        checkpoint: to resume from, and its step; None for none.
    """

    flags: Mapping[str, Any]
    accelerator: str
    devices: int
    run_directory: Path
    data: "MNISTDataModule"
    settings: Mapping[str, Any]
    checkpoint: tuple[Path, int] | None

    @property
    def config(self) -> dict[str, Any]:
        """The flags with which the same training is begun anew."""
        place = {"output_dir": str(self.run_directory.parent), "run_name": self.run_directory.name}
        return {**self.flags, **place, "resume": None}

    @property
    def writes(self) -> bool:
        return not self.flags["fast_dev_run"]

    def resume_line(self) -> str:
        """Return how to resume the run, once it has left anything behind."""
        if started_by_us() or not (self.writes and self.run_directory.exists()):
            return ""  # what has started this process says it
        place = ["--output_dir", str(self.run_directory.parent), "--run_name", self.run_directory.name]
        flags = ["--config", str(self.run_directory / "config.yaml"), *place, "--resume", "last"]
        starter = "python"
        if "TORCHELASTIC_RUN_ID" in os.environ and not started_by_us():
            nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
            starter = f"torchrun --nproc_per_node {os.environ['LOCAL_WORLD_SIZE']}" + (" ..." if nodes > 1 else "")
        return f"To resume: {starter} -m lit_mnist.train {shlex.join(flags)}\n"


@dataclass(frozen=True)
class Parts:
    """What trains: the Trainer, the module, and those of the callbacks that are asked afterwards."""

    trainer: "L.Trainer"
    module: "LitMNIST"
    results: "EpochResults"
    outputs: "TestOutputs"
    checkpoints: "Checkpoints"


def make_plan(flags: Mapping[str, Any]) -> Plan:
    """Find out what the flags of `train` ask for, and whether it can be had; write nothing.

    Raises:
        InputError: a wrong value or file.
    """
    exit_with_parent()
    check_environment()
    resume = flags["resume"]
    if resume is None:
        run_directory = plan_run_directory(flags["output_dir"], flags["run_name"], prefix="lit_mnist")
    elif flags["fast_dev_run"]:
        raise InputError("--fast_dev_run: leaves no run behind that could be resumed; leave out --resume")
    else:
        run_directory = find_run_directory(flags["output_dir"], flags["run_name"], resume)
        if (epochs := epochs_of_results(run_directory)) >= flags["max_epochs"]:
            raise InputError(f"{run_directory}: finished with {epochs} epochs; give a larger --max_epochs")

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails in C++ becomes an exception, too
    from lit_mnist.data import MNISTDataModule
    from lit_mnist.runs.checkpoints import choose_checkpoint, read_checkpoint
    from lit_mnist.runs.trainer import choose_devices

    accelerator, devices = choose_devices(flags["accelerator"], flags["devices"])
    world_size = devices * flags["num_nodes"]
    check_processes(devices, flags["num_nodes"])
    data = MNISTDataModule(
        flags["data_dir"], flags["batch_size"], flags["validation_images"], flags["seed"], flags["verify_data"]
    )
    data.setup()
    data.check_batches(world_size, flags["limit_train_batches"])

    names = ("batch_size", "learning_rate", "seed", "validation_images", "precision", "limit_train_batches")
    settings = {f"--{name}": flags[name] for name in (*names, "deterministic", "fused")}
    settings |= {"--accelerator": accelerator, "--devices": world_size}
    settings["the data set in --data_dir, sha256"] = data.sha256
    checkpoint = None
    if resume is not None:
        checkpoint = choose_checkpoint(
            resume,
            run_directory / "checkpoints",
            lambda path: read_checkpoint(path, settings, flags["max_epochs"], OF_EARLIER_RELEASES),
            passed_over_is_said=not started_by_us(),
        )
    return Plan(flags, accelerator, devices, run_directory, data, settings, checkpoint)


def build(plan: Plan, signals: SignalHandler) -> Parts:
    """Make everything that trains.

    Raises:
        InputError: if this machine cannot do what the flags ask for.
    """
    import lightning as L

    from lit_mnist.model import INPUT_SHAPE
    from lit_mnist.module import LitMNIST
    from lit_mnist.runs.checkpoints import Checkpoints, SettledBuckets
    from lit_mnist.runs.progress import EpochResults, ProgressBar, TestOutputs, make_console, silence_lightning
    from lit_mnist.runs.trainer import make_trainer

    silence_lightning()
    L.seed_everything(plan.flags["seed"], verbose=False)
    module = LitMNIST(plan.flags["learning_rate"], plan.flags["fused"])
    console = make_console()
    results = EpochResults(console, plan.run_directory if plan.writes else None, plan.config)
    checkpoints = Checkpoints(
        plan.run_directory / "checkpoints" if plan.writes else None,
        plan.flags["checkpoint_every_n_steps"],
        signals,
        plan.settings,
        plan.resume_line,
    )
    outputs = TestOutputs()
    callbacks: list[L.Callback] = [results, outputs, checkpoints, SettledBuckets(INPUT_SHAPE)]
    if console.is_terminal:
        callbacks.append(ProgressBar(module.train_averages.means))
    trainer = make_trainer(
        plan.flags, plan.accelerator, plan.devices, plan.run_directory, callbacks, console.is_terminal
    )
    return Parts(trainer, module, results, outputs, checkpoints)


def train_on_all_devices(plan: Plan) -> dict[str, Any]:
    """Run the command once for each device; return what summary.json then holds."""
    with tempfile.TemporaryDirectory(prefix="lit_mnist-") as directory:
        config = Path(directory, "config.yaml")
        config.write_text(yaml.safe_dump({**plan.config, "resume": plan.flags["resume"]}))
        command = ["-m", "lit_mnist.train", "--config", str(config)]
        run_on_devices(command, plan.devices, plan.flags["num_nodes"], plan.flags["timeout"], plan.resume_line)
    summary = plan.run_directory / "summary.json"
    return dict(json.loads(summary.read_text())) if plan.writes and summary.exists() else {}


def announce(plan: Plan, parts: Parts) -> None:
    """Show the model, where it resumes and what it waits for."""
    from lit_mnist.model import INPUT_SHAPE
    from lit_mnist.runs.progress import busy_machine, layer_table

    console = parts.results.console
    console.print(layer_table(parts.module, INPUT_SHAPE))
    if line := busy_machine(plan.accelerator):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if plan.checkpoint is not None:
        path, step = plan.checkpoint
        line = f"Resumes after step {step:,}, from {path}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if plan.flags["num_nodes"] > 1:
        console.print(f"Waiting for the processes of all {plan.flags['num_nodes']} nodes.")


def fit_and_test(plan: Plan, parts: Parts) -> "tuple[dict[str, Any], np.ndarray]":
    """Train, then test once; return what summary.json is to hold, and the probabilities of the test images, [I, 10].

    Raises:
        InputError: if the checkpoint cannot be restored; nothing was changed.
    """
    import numpy as np

    trainer, module, data = parts.trainer, parts.module, plan.data
    checkpoint = plan.checkpoint and plan.checkpoint[0]
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if checkpoint is None or parts.checkpoints.training_began:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{checkpoint}: cannot be restored ({reason}); name another, or start a new run") from error
    train_seconds = parts.results.seconds()
    (tested,) = trainer.test(module, data, verbose=False)
    if not plan.writes:
        return dict(tested), np.empty((0, 10))
    probabilities = data.gather(parts.outputs.batches)
    return dict(tested) | {
        "test_images": len(probabilities),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "epochs": plan.flags["max_epochs"],
        "batch_size": plan.flags["batch_size"],
        "seed": plan.flags["seed"],
        "framework": "lightning",
        "versions": versions("torch", "torchvision", "lightning", "numpy"),
        "dataset_sha256": data.sha256,
        "train_seconds": round(train_seconds, 3),
    }, probabilities


def write(plan: Plan, parts: Parts, summary: Mapping[str, Any], probabilities: "np.ndarray") -> None:
    """Leave the results in the run directory, and say so."""
    console = parts.results.console
    if not plan.writes:
        console.print("fast_dev_run: one batch was trained on and one tested; no results were written.")
        return
    images, labels = (tensor.numpy() for tensor in plan.data.test.tensors)
    count = len(probabilities)
    write_results(plan.run_directory, parts.results.rows, summary, images[:count, 0], labels[:count], probabilities)
    console.print(result_lines(plan.run_directory, summary), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    run(train, prog="python -m lit_mnist.train", tell_parent=tell_parent)

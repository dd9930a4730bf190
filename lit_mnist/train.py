"""python -m lit_mnist.train: train the documented model, evaluate it, leave a run directory behind."""

import contextlib
import functools
import os
import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt

from lit_mnist.runs.command import BatchSize, Devices, InputError, LearningRate, Seconds, Seed, run
from lit_mnist.runs.directory import (
    check_environment,
    continue_run_directory,
    create_run_directory,
    epochs_of_results,
    find_run_directory,
    hold_run_directory,
    plan_run_directory,
    result_lines,
    versions,
    write_results,
)
from lit_mnist.runs.signals import Interruption, end_with_first_process, told_ends

if TYPE_CHECKING:
    import lightning as L
    import numpy as np
    from lightning.fabric.plugins import CheckpointIO

    from lit_mnist.data import MNISTDataModule

PROG = "python -m lit_mnist.train"


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
    logger: Literal["csv", "tensorboard"] = "csv",
    fast_dev_run: bool = False,
    limit_train_batches: PositiveInt | OpenUnitInterval | None = None,
    deterministic: bool = False,
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
        data_dir: Where the data set is, or is to be put.
        verify_data: Insist on MNIST's own files; false accepts other data in the same format.
        validation_images: How many training images to hold out and to evaluate after each epoch.
        output_dir: Where the directory of the run is made.
        run_name: Name of that directory; by default made of the date and time.
        logger: csv writes metrics.csv; tensorboard writes event files as well.
        fast_dev_run: One batch of training and one of testing, to see that all works; writes no results.
        limit_train_batches: Batches in an epoch if it is 1 or more, else the share of them; null takes all.
        deterministic: Use only operations that give the same result each time, on a GPU too.
        checkpoint_every_n_steps: Write a checkpoint after every so many steps too, not after each epoch only; 0 or null
            for none.
        resume: Go on with the run of --output_dir and --run_name, from its last checkpoint that is whole (last) or from
            a named one (a path), with the flags that it was started with; --max_epochs may have grown.
        timeout: Seconds that several processes wait for one another, at the start and at each step, before the run ends
            with an error.

    Returns:
        What summary.json holds; the test results alone after a fast_dev_run.

    Raises:
        InputError: a wrong value or file; nothing but the data set was written.
    """
    config = dict(locals())  # before any other variable is set: the flags and their values
    check_environment()
    end_with_first_process()
    interruption = Interruption()
    interruption.listen()
    with contextlib.ExitStack() as held:
        held.callback(interruption.stop_listening)
        if resume is None:
            run_directory = plan_run_directory(output_dir, run_name, prefix="lit_mnist")
        else:
            if fast_dev_run:
                raise InputError("--fast_dev_run: leaves no run behind that could go on; leave out --resume")
            run_directory = find_run_directory(output_dir, run_name, resume)
            config |= {"resume": None, "output_dir": str(run_directory.parent), "run_name": run_directory.name}

        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails in C++ is told as an exception, too
        import lightning as L
        from rich import get_console

        from lit_mnist.data import MNISTDataModule
        from lit_mnist.mnist_files import dataset_digest
        from lit_mnist.module import LitMNIST
        from lit_mnist.runs.checkpoints import CheckpointFiles, Checkpoints, choose_checkpoint, read_checkpoint
        from lit_mnist.runs.progress import EpochResults, layer_table, silence_lightning

        silence_lightning()
        console = get_console()  # the one that the progress bar draws on
        console.on_broken_pipe = functools.partial(setattr, console, "quiet", True)  # type: ignore[method-assign]
        results = EpochResults(console, None if fast_dev_run else run_directory)
        checkpoints = Checkpoints(
            None if fast_dev_run else run_directory / "checkpoints", checkpoint_every_n_steps, interruption
        )
        checkpoint_files = CheckpointFiles()
        trainer = make_trainer(config, run_directory, [results, checkpoints], checkpoint_files)
        check_processes(trainer)
        if resume is not None and trainer.is_global_zero:
            held.enter_context(hold_run_directory(run_directory))
            if (epochs := epochs_of_results(run_directory)) >= max_epochs:
                raise InputError(f"{run_directory}: finished with {epochs} epochs; only a larger --max_epochs goes on")

        # Whatever can be wrong with the input shows before the first file is written and the first process started.
        L.seed_everything(seed, verbose=False)
        data = MNISTDataModule(data_dir, batch_size, validation_images, seed, verify_data)
        module = LitMNIST(learning_rate)
        data.prepare_data()
        data.setup("fit")
        data.check_batches(trainer.world_size, limit_train_batches)
        checkpoints.settings = {
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "validation_images": validation_images,
            "precision": precision,
            "limit_train_batches": limit_train_batches,
            "deterministic": deterministic,
            "accelerator": trainer.accelerator.name(),
            "devices": trainer.world_size,
            "dataset_sha256": dataset_digest(data.data_dir),
        }
        if resume is not None:
            read = functools.partial(read_checkpoint, trainer=trainer, module=module, settings=checkpoints.settings)
            chosen = choose_checkpoint(resume, run_directory / "checkpoints", read, tell=trainer.is_global_zero)
            checkpoint_files.path, checkpoint_files.content = chosen or (None, {})
        if trainer.is_global_zero and not fast_dev_run:
            if resume is None:
                create_run_directory(run_directory, config)
                held.enter_context(hold_run_directory(run_directory))
            else:
                continue_run_directory(run_directory, config)
            interruption.last_words = f"To go on: {resume_command(run_directory)}\n"
        if trainer.is_global_zero:
            console.print(layer_table(module))
            if checkpoint_files.path is not None:
                line = f"Goes on after step {checkpoint_files.content['global_step']:,}, from {checkpoint_files.path}"
                console.print(line, soft_wrap=True, highlight=False, markup=False)
            if num_nodes > 1:
                console.print(f"Waiting for the processes of all {num_nodes} nodes.")

        replace_in_lightning(trainer, module, timeout)
        with told_ends(trainer, interruption, PROG):
            trainer.fit(module, data, ckpt_path=checkpoint_files.path, weights_only=True)
            train_seconds = results.seconds()
            (test_results,) = trainer.test(module, data, verbose=False)
            if fast_dev_run:
                if trainer.is_global_zero:
                    console.print("fast_dev_run: one batch was trained on and one tested; no results were written.")
                return dict(test_results)

            probabilities = predict_test_images(trainer, module, data)
            summary = dict(test_results) | {
                "test_images": len(data.test),
                "parameters": sum(p.numel() for p in module.parameters()),
                "epochs": max_epochs,
                "batch_size": batch_size,
                "seed": seed,
                "framework": "lightning",
                "versions": versions("torch", "torchvision", "lightning", "numpy"),
                "dataset_sha256": checkpoints.settings["dataset_sha256"],
                "train_seconds": round(train_seconds, 3),
            }
            if trainer.is_global_zero:
                images, labels = (x.numpy() for x in data.test.tensors)
                write_results(run_directory, results.rows, summary, images[:, 0], labels, probabilities)
                console.print(result_lines(run_directory, summary), soft_wrap=True, highlight=False, markup=False)
        return summary


def make_trainer(
    flags: Mapping[str, Any], run_directory: Path, callbacks: "list[L.Callback]", checkpoint_files: "CheckpointIO"
) -> "L.Trainer":
    """Return the Trainer that the flags of `train` ask for, with a progress bar if somebody is watching.

    Raises:
        InputError: if this machine cannot do what they ask for.
    """
    import lightning as L
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from rich import get_console

    from lit_mnist.runs.progress import ProgressBar

    devices = flags["devices"]
    if devices == "auto" and TorchElasticEnvironment.detect():
        devices = os.environ["LOCAL_WORLD_SIZE"]
    show_progress = get_console().is_terminal and not get_console().is_dumb_terminal
    try:
        trainer = L.Trainer(
            accelerator=flags["accelerator"],
            devices=devices,
            num_nodes=flags["num_nodes"],
            strategy=flags["strategy"],
            precision=flags["precision"],
            max_epochs=flags["max_epochs"],
            fast_dev_run=flags["fast_dev_run"],
            limit_train_batches=flags["limit_train_batches"],
            deterministic=flags["deterministic"],
            logger=flags["logger"] == "tensorboard" and _tensorboard_logger(run_directory),
            default_root_dir=run_directory,  # Lightning takes up hpc_ckpt_*.ckpt from there
            callbacks=[*callbacks, ProgressBar()] if show_progress else callbacks,
            plugins=[checkpoint_files],
            limit_val_batches=None if flags["validation_images"] else 0,
            num_sanity_val_steps=0,
            enable_progress_bar=show_progress,
            enable_model_summary=False,  # it rounds the counts; layer_table does not
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        names = ("accelerator", "devices", "strategy", "precision", "logger")
        asked = " ".join(f"--{name} {flags[name]}" for name in names)
        reason = " ".join(str(error).split())
        raise InputError(f"{asked}: {reason} (--accelerator auto takes what this machine has)") from error
    precision = flags["precision"]
    if trainer.precision != precision:  # on a CPU, Lightning takes bf16-mixed for 16-mixed
        raise InputError(f"--precision {precision}: {trainer.accelerator.name()} has {trainer.precision} instead")
    return trainer


def replace_in_lightning(trainer: "L.Trainer", module: "L.LightningModule", timeout: int) -> None:
    """Make Lightning 2.6.6 resume in 64 bits, and end in time when a signal comes or a process is lost.

    Three of the names are private: there are no public ones for it.
    """
    from lightning.pytorch.strategies import DDPStrategy

    # It restores the weights before it does so: those of a run in 64 bits would be rounded to 32.
    trainer.precision_plugin.convert_module(module)
    # All have prepared the data by now; in here, they would wait for one another forever.
    trainer._data_connector.prepare_data = lambda: None  # type: ignore[method-assign]
    # Its handler of SIGTERM talks to the other devices from within, which can hang them, and then exits with 0.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=timeout)  # "ddp" by name, or by number of devices, has 1,800


def check_processes(trainer: "L.Trainer") -> None:
    """Make sure that all processes that were started will train together, and not each on its own.

    Raises:
        InputError: if torchrun or SLURM has started more or fewer, or this is said to be of a machine too many.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    processes = trainer.num_devices * trainer.num_nodes
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect() and (started := environment().world_size()) != processes:
            raise InputError(
                f"--devices {trainer.num_devices} --num_nodes {trainer.num_nodes}: {processes} processes, but "
                f"{started} were started; --devices times --num_nodes must be as many"
            )
    if trainer.node_rank >= trainer.num_nodes:
        raise InputError(f"NODE_RANK={trainer.node_rank} in the environment: expected less than --num_nodes")


def resume_command(run_directory: Path) -> str:
    """Return the command that goes on with a run."""
    place = ["--output_dir", str(run_directory.parent), "--run_name", run_directory.name]
    flags = ["--config", str(run_directory / "config.yaml"), *place, "--resume", "last"]
    starter = "python"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
        starter = f"torchrun --nproc_per_node {os.environ['LOCAL_WORLD_SIZE']}" + (" ..." if nodes > 1 else "")
    return f"{starter} -m lit_mnist.train {shlex.join(flags)}"


def predict_test_images(trainer: "L.Trainer", module: "L.LightningModule", data: "MNISTDataModule") -> "np.ndarray":
    """Return the class probabilities of all test images, [I, 10], on every device, whoever computed which."""
    import torch

    batches = trainer.predict(module, data)
    assert batches is not None
    own = torch.cat([batch for batch in batches if isinstance(batch, torch.Tensor)])  # [own images, 10]
    own = own.to(module.device, torch.promote_types(own.dtype, torch.float32))  # NumPy has no bfloat16
    everyone = own.new_zeros(len(data.test), own.shape[1])
    everyone[torch.cat(list(data.test_batches()))] = own
    return trainer.strategy.reduce(everyone, reduce_op="sum").cpu().numpy()


def _tensorboard_logger(run_directory: Any) -> Any:
    import sys
    from types import ModuleType

    from lightning.pytorch.loggers import TensorBoardLogger

    # TensorBoard's own switch ("no TensorFlow"): it would load TensorFlow where that is installed, log lines and all.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

    return TensorBoardLogger(run_directory.parent, name=run_directory.name, version="tensorboard")


if __name__ == "__main__":
    run(train, prog=PROG)

"""Train a port through `Trainer.fit`, and keep what can be compared."""

import contextlib
import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lit_mnist.data import MNISTDataModule, cut
from lit_mnist.errors import InputError
from lit_mnist.runs.checkpoints import SettledBuckets
from lit_mnist.runs.files import versions
from lit_mnist.runs.progress import silence_lightning
from lit_mnist.trace.candidate import Candidate
from lit_mnist.trace.files import TraceInputs
from lit_mnist.trace.mapped import ArrayData, MappedCandidate

Progress = Callable[[int, int], None]  # is given the steps done and their number


def trace_training(
    given: TraceInputs,
    candidate: Candidate | MappedCandidate,
    progress: Progress | None = None,
    devices: int = 1,
    checkpoint: Path | None = None,
    kill_after: int | None = None,
    accelerator: str = "cpu",
) -> dict[str, np.ndarray]:
    """Train as given and return all that can be compared, keyed as in a trace's output file.

    On several devices, every one of their processes returns the same; activations are kept on one alone.

    Args:
        given: the training.
        candidate: that is trained, made for it.
        progress: is given the steps done and their number.
        devices: processes on the CPU, which torchrun has started.
        checkpoint: file of Lightning's, to resume from if it is there; it holds what was kept of each step, too.
        kill_after: the step after which to write it and to end by SIGKILL.
        accelerator: that trains it.

    Raises:
        InputError: if the candidate lacks something.
    """
    candidate.load(given.weights)
    loaded = candidate.arrays("loaded")
    data = candidate.data(given)
    data.setup()
    given.check_images(len(data.train))
    if isinstance(candidate, MappedCandidate) and not candidate.trains:
        return loaded | _without_training(given, candidate)
    module = candidate.module
    assert isinstance(module, L.LightningModule)
    if devices > 1 and ((given.batches >= 0).sum(axis=1) % devices).any():
        raise InputError(f"--inputs: batches has a row that does not divide among {devices} devices")
    earlier = checkpoint if checkpoint and checkpoint.exists() else None
    if earlier and not zipfile.is_zipfile(earlier):
        raise InputError(f"{earlier}: not a checkpoint; name one that --kill_after has left, or remove it")

    trace = StepTrace(given, candidate, checkpoint, kill_after)
    settled = SettledBuckets(candidate.input_shape)
    trainer = make_trainer(given.epochs, given.dtype, [trace, settled], progress, devices, accelerator)
    # The checkpoint is our own, of a minute ago, and a candidate may put anything into it.
    trainer.fit(module, data, ckpt_path=earlier, weights_only=False)
    arrays = {
        **loaded,
        **trace.finished(trainer.strategy),
        **candidate.state("", trainer.optimizers[0]),
        "run_id": np.asarray(given.run_id),
        "versions": np.asarray(json.dumps(versions("torch", "lightning", "numpy"))),
    }
    if not given.hold:
        arrays |= reported_test_results(trainer, module, data) if candidate.is_tested else {}
        arrays["probabilities"] = candidate.predicted(predict_test_images(trainer, module, data))
    return arrays


def _without_training(given: TraceInputs, candidate: MappedCandidate) -> dict[str, np.ndarray]:
    """Return what can be compared of a module that no Trainer trains: what it gives, with the start weights."""
    arrays = {"run_id": np.asarray(given.run_id)}
    for step in given.record_at.tolist():
        rows = given.batches[step][given.batches[step] >= 0]
        arrays |= candidate.activations(f"activations/{step}", candidate.inputs(candidate.examples.arrays[0][rows]))
    return arrays


def train_as_documented(
    name: str, data_dir: str, seed: int, epochs: int = 10, progress: Progress | None = None, accelerator: str = "cpu"
) -> dict[str, np.ndarray]:
    """Train from the candidate's own start weights and in its own order of the images.

    Returns:
        `test_accuracy` [] and `test_loss` [] (nats per image), computed in float64 from the probabilities of the test
        images; `train_loss` and `train_accuracy` [epochs] as they were logged.
    """
    L.seed_everything(seed, verbose=False)
    candidate = Candidate(name)
    data = candidate.data_module(data_dir, batch_size=100, seed=seed)
    log = EpochLog()
    trainer = make_trainer(epochs, "float32", [log], progress, accelerator=accelerator)
    trainer.fit(candidate.module, data)
    probabilities = predict_test_images(trainer, candidate.module, data).astype(np.float64)
    labels = data.test.tensors[1].numpy()
    of_the_label = probabilities[np.arange(len(labels)), labels]
    return log.arrays() | {
        "test_accuracy": np.mean(probabilities.argmax(axis=1) == labels),
        "test_loss": np.mean(-np.log(np.maximum(of_the_label, np.finfo(np.float32).tiny))),
    }


def train_freely(
    candidate: MappedCandidate,
    brought: L.LightningModule | L.LightningDataModule | None,
    seed: int,
    epochs: int,
    batch_size: int,
    progress: Progress | None = None,
    accelerator: str = "cpu",
) -> dict[str, np.ndarray]:
    """Train a port of another model from its own start weights, in the order of its own loader or in one drawn here.

    Args:
        candidate: made after the seed was set.
        brought: what has the port's own loader; None if it brings none.
        seed: of the order that is drawn here.
        epochs: of the training.
        batch_size: of the order that is drawn here.
        progress: is given the steps done and their number.
        accelerator: that trains it.

    Returns:
        What it logs of the tests: `test_loss` and more; nothing without a `test_step`.
    """
    module = candidate.module
    assert isinstance(module, L.LightningModule)
    examples = len(candidate.examples)
    drawn = ArrayData(
        candidate, lambda epoch: cut(np.random.default_rng([seed, epoch]).permutation(examples), batch_size)
    )
    trainer = make_trainer(epochs, "float32", [], progress, accelerator=accelerator)
    if isinstance(brought, L.LightningModule):
        trainer.fit(module)
    else:
        trainer.fit(module, drawn if brought is None else brought)
    logged = reported_test_results(trainer, module, drawn)
    return {name.removeprefix("history/"): array.squeeze() for name, array in logged.items()}


def make_trainer(
    epochs: int,
    dtype: str,
    callbacks: list[L.Callback],
    progress: Progress | None = None,
    devices: int = 1,
    accelerator: str = "cpu",
) -> L.Trainer:
    """Return a Trainer that writes and shows nothing.

    Raises:
        InputError: if this machine has no such accelerator.
    """
    silence_lightning()
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=devices,
            precision="64-true" if dtype == "float64" else "32-true",
            max_epochs=epochs,
            callbacks=[*callbacks, ProgressCallback(progress)] if progress else callbacks,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise InputError(f"--accelerator {accelerator}: {' '.join(str(error).split())}") from error


Data = MNISTDataModule | ArrayData


def predict_test_images(trainer: L.Trainer, module: L.LightningModule, data: Data) -> np.ndarray:
    """Return the probabilities of the test images, [10000, 10]; without a `predict_step`, by calling the module."""
    if isinstance(data, ArrayData) or type(module).predict_step is L.LightningModule.predict_step:
        assert isinstance(module.dtype, torch.dtype)
        module = CalledToPredict(module).to(module.dtype)
    return data.gather(trainer.predict(module, data))  # type: ignore[arg-type]  # of one loader


def reported_test_results(trainer: L.Trainer, module: L.LightningModule, data: Data) -> dict[str, np.ndarray]:
    """Return what the module itself logs of the test images, `test_loss` and more, as far as it does."""
    if type(module).test_step is L.LightningModule.test_step:
        return {}
    (logged,) = trainer.test(module, data, verbose=False)
    return {f"history/{name}": np.array([value]) for name, value in logged.items() if name.startswith("test_")}


class CalledToPredict(L.LightningModule):
    """Predict by calling a module that has no `predict_step`."""

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        self.module = module

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.module(batch[0])


class ProgressCallback(L.Callback):
    """Report how far a training has come."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress(trainer.global_step, int(trainer.estimated_stepping_batches))


class EpochLog(Checkpoint):
    """Keep what is logged for each epoch.

    It is a `Checkpoint` because Lightning calls those last, after the module's own hook at the end of an epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was logged of training in every epoch, as in `train_loss` [epochs]."""
        return {
            name: np.array([epoch[name] for epoch in self.epochs])
            for name in (self.epochs[0] if self.epochs else ())
            if name.startswith("train_") and all(name in epoch for epoch in self.epochs)
        }


class StepTrace(EpochLog):
    """Keep the loss and the accuracy of every batch before its update, and more of the steps that are asked for."""

    def __init__(
        self,
        given: TraceInputs,
        candidate: Candidate | MappedCandidate,
        checkpoint: Path | None = None,
        kill_after: int | None = None,
    ) -> None:
        super().__init__()
        self.given, self.candidate = given, candidate
        self.checkpoint, self.kill_after = checkpoint, kill_after
        self.record_at = set(given.record_at.tolist())
        self.kept: dict[str, np.ndarray] = {}
        self.in_training: dict[str, np.ndarray] = {}
        self.watched = contextlib.ExitStack()  # what layers give in training, while a recorded step lasts
        # Numbers, not tensors: thousands of small tensors that stay leave holes of gigabytes in the memory.
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        own = torch.tensor([self.losses, self.accuracies], dtype=torch.float64)
        everyone = own.new_zeros(trainer.world_size, *own.shape)  # each process has those of its share of the batches
        everyone[trainer.global_rank] = own
        checkpoint["trace"] = {"steps": trainer.strategy.reduce(everyone, reduce_op="sum"), "epochs": self.epochs}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.losses, self.accuracies = checkpoint["trace"]["steps"][trainer.global_rank].tolist()
        self.epochs = checkpoint["trace"]["epochs"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.given.learning_rate == 0:  # a port that has a rate of its own is not to move before rung 8 looks at it
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.0
        self.candidate.give_draws(lambda: self.step, trainer.global_rank, trainer.world_size)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        inputs = batch[0]
        accuracy = self.candidate.accuracy(batch)
        if accuracy is not None:
            self.accuracies.append(accuracy)
        if trainer.world_size > 1:
            return  # each process sees its share of the batch
        if self.step == 0:  # part of what a trace holds, whoever reads it; the ladder asks for single steps
            self.kept |= self.candidate.activations("activations", inputs)
        if self.step in self.record_at:
            self.kept |= self.candidate.activations(f"activations/{self.step}", inputs)
            if self.candidate.modal:
                self.in_training = self.watched.enter_context(self.candidate.watching(f"training/{self.step}"))

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.kept |= self.in_training  # the forward pass is over
        self.in_training = {}
        self.watched.close()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.step in self.record_at:
            parameters = self.candidate.parameters.items()
            gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
            self.kept |= self.candidate.arrays(f"gradients/{self.step}", gradients)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.step in self.record_at:
            self.kept |= self.candidate.state(f"after/{self.step}/", trainer.optimizers[0])
        if not outputs:
            raise InputError("--candidate: training_step returned no loss")
        self.losses.append(outputs["loss"].item())
        if self.given.hold:
            self.candidate.load(self.given.weights)
        if self.step == self.kill_after:
            assert self.checkpoint is not None
            trainer.save_checkpoint(self.checkpoint)
            os.kill(os.getpid(), signal.SIGKILL)

    def finished(self, strategy: Strategy) -> dict[str, np.ndarray]:
        """Return what was kept, with `history/...` of the epochs, and `loss` and `accuracy` of the steps."""
        history = self.arrays()
        # Of equal shares, as they must be, the mean over the devices is the mean over the batch.
        steps = {
            name: strategy.reduce(torch.tensor(values, dtype=torch.float64), reduce_op="mean").numpy()
            for name, values in (("loss", self.losses), ("accuracy", self.accuracies))
        }
        if not self.accuracies:
            del steps["accuracy"]
        return self.kept | {name.replace("train_", "history/"): array for name, array in history.items()} | steps

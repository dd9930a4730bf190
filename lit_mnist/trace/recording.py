"""Record trainings with Lightning: the port's side of the comparison, once torch is there.

What a candidate must offer, to be traced in place of `LitMNIST`:

- a `LightningModule` that is made as `Candidate(learning_rate=...)`;
- layers named conv, pool, flatten, hidden and output somewhere in it, of which conv, hidden and output have `weight`
  and `bias` in torch's layout, flattened channel, row, column. A candidate with another layout says so with static
  methods in place of those of `lit_mnist.weights`: `from_keras(arrays)`, from NumPy arrays by the keys of
  `lit_mnist.trace.files.WEIGHTS` ("conv/kernel") to tensors by name ("conv.weight", any prefix); `to_keras(tensors)`,
  the way back; `activation_to_keras(tensor)`, from what a layer gives to an array as Keras has it (N, H, W, C);
- `training_step((images, labels), batch_idx)` returns the loss of images [N, 1, 28, 28] in [0, 1] and one-hot labels
  [N, 10]; calling it with images gives probabilities [N, 10];
- if it prepares its data in its own way, `data_module` names its subclass of `MNISTDataModule`, whose
  `train_batches` and `test_batches` return a `Batches`;
- it logs `train_loss` and `train_accuracy` once an epoch (`on_step=False, on_epoch=True`) and, if it has a
  `test_step`, `test_loss` and `test_accuracy` with it (without, rung 10 does not look at them): as tensors in the dtype
  of the training, since Lightning rounds numbers to 32 bits; for rung 12 with `sync_dist=True`; for rung 13 as averages
  of the whole epoch, of which a checkpoint holds the sums so far (`LitMNIST` saves its own: `self.log` alone begins
  anew);
- `configure_optimizers` returns an optimizer that keeps `exp_avg` and `exp_avg_sq`, as torch's Adam does.
"""

import importlib
import json
import os
import signal
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lit_mnist import weights
from lit_mnist.data import Batches, MNISTDataModule
from lit_mnist.keras_files import read_keras_file
from lit_mnist.errors import InputError
from lit_mnist.runs.directory import versions
from lit_mnist.runs.progress import silence_lightning
from lit_mnist.trace.files import TraceInputs, digest
from lit_mnist.trace.jobs import Tell
from lit_mnist.train import predict_test_images

LAYERS = ("conv", "pool", "flatten", "hidden", "output")


def record(
    given: TraceInputs,
    candidate: str,
    tell: Tell | None = None,
    devices: int = 1,
    checkpoint: Path | None = None,
    kill_after: int | None = None,
) -> dict[str, np.ndarray]:
    """Train as given and return all that was recorded, keyed as in a trace's output file.

    On several devices, every one of their processes returns the same; activations are recorded on one alone.

    Args:
        given: the training.
        candidate: as package.module:Class.
        tell: called with the steps done and their number.
        devices: processes on the CPU.
        checkpoint: file of Lightning's, to go on from if it is there; it holds what was recorded of each step, too.
        kill_after: the step after which to write it and to end by SIGKILL.

    Raises:
        InputError: if there is no such candidate, or it lacks something named above.
    """
    dtype = torch.float64 if given.dtype == "float64" else torch.float32
    module = load_candidate(candidate)(learning_rate=given.learning_rate).to(dtype)
    layout = Layout(module, candidate)
    layout.load(given.weights)

    data = given_batches(given, data_module(type(module)))
    recorder = Recorder(given, layout, checkpoint, kill_after)
    precision = "64-true" if given.dtype == "float64" else "32-true"
    trainer = make_trainer(given.epochs, tell, precision, recorder, devices=devices)
    data.prepare_data()
    data.setup()
    check_rows(given, len(data.train), devices)
    loaded = layout.keyed("loaded", layout.parameters)
    earlier = checkpoint if checkpoint and checkpoint.exists() else None
    if earlier and not zipfile.is_zipfile(earlier):
        raise InputError(f"{earlier}: not a checkpoint; name one that --kill_after has left, or remove it")
    # The checkpoint is our own, of a minute ago, and a candidate may put anything into it.
    trainer.fit(module, data, ckpt_path=earlier, weights_only=False)
    recorder.recorded |= loaded | layout.state("", trainer.optimizers[0])
    return recorder.finished(trainer.strategy) | {
        **reported_test(trainer, module, data),
        "probabilities": predicted_probabilities(trainer, module, data),
        "run_id": np.asarray(given.run_id),
        "versions": np.asarray(json.dumps(versions("torch", "lightning", "numpy"))),
    }


def record_loaded(candidate: str, file: Path) -> dict[str, np.ndarray]:
    """Return `loaded/<key>`: the weights of a candidate that has loaded a file of Keras."""
    arrays = read_keras_file(file)
    module = load_candidate(candidate)(learning_rate=0.001).to(getattr(torch, str(arrays["conv/kernel"].dtype)))
    layout = Layout(module, candidate)
    layout.load(arrays)
    return layout.keyed("loaded", layout.parameters)


def record_results(
    candidate: str, data_dir: str, seed: int, epochs: int = 10, tell: Tell | None = None
) -> dict[str, np.ndarray]:
    """Train as documented, from the candidate's own start weights and in its own order of the images.

    Returns:
        `test_accuracy` [] and `test_loss` [] (nats per image), computed in float64 from the probabilities of the test
        images; `train_loss` and `train_accuracy` [epochs] as they were logged.
    """
    candidate_class = load_candidate(candidate)
    data = data_module(candidate_class)(data_dir, batch_size=100, seed=seed)
    L.seed_everything(seed, verbose=False)
    module = candidate_class(learning_rate=0.001)
    reports = Reports()
    trainer = make_trainer(epochs, tell, "32-true", reports)
    trainer.fit(module, data)
    probabilities = predicted_probabilities(trainer, module, data).astype(np.float64)
    labels = data.test.tensors[1].numpy()
    of_the_label = probabilities[np.arange(len(labels)), labels]
    return reports.arrays("train_loss", "train_accuracy") | {
        "test_accuracy": np.mean(probabilities.argmax(axis=1) == labels),
        "test_loss": np.mean(-np.log(np.maximum(of_the_label, np.finfo(np.float32).tiny))),
    }


def make_trainer(epochs: int, tell: Tell | None, precision: Any, *callbacks: L.Callback, devices: int = 1) -> L.Trainer:
    """Return a Trainer on the CPU that writes and shows nothing."""
    silence_lightning()
    return L.Trainer(
        accelerator="cpu",
        devices=devices,
        precision=precision,
        max_epochs=epochs,
        callbacks=[*callbacks, Progress(tell)] if tell else list(callbacks),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def predicted_probabilities(trainer: L.Trainer, module: L.LightningModule, data: MNISTDataModule) -> np.ndarray:
    """Return the probabilities of the test images, [10000, 10]; without a `predict_step`, by calling the module."""
    if type(module).predict_step is L.LightningModule.predict_step:
        module.predict_step = lambda batch, batch_idx: module(batch[0])  # type: ignore[method-assign, misc]
    return predict_test_images(trainer, module, data)


def reported_test(trainer: L.Trainer, module: L.LightningModule, data: MNISTDataModule) -> dict[str, np.ndarray]:
    """Return the `test_loss` and the `test_accuracy` that the module itself logs, as far as it does."""
    if type(module).test_step is L.LightningModule.test_step:
        return {}
    (logged,) = trainer.test(module, data, verbose=False)
    return {f"history/{name}": np.array([logged[name]]) for name in ("test_loss", "test_accuracy") if name in logged}


def check_rows(given: TraceInputs, images: int, devices: int) -> None:
    """Make sure that a trace's batches are of images that there are, and divide among the devices."""
    if given.batches.max() >= images:
        raise InputError(f"--inputs: batches names image {given.batches.max()}; there are {images}")
    if devices > 1 and ((given.batches >= 0).sum(axis=1) % devices).any():
        raise InputError(f"--inputs: batches has a row that does not divide among {devices} devices")


def record_facts(candidate: str, data_dir: str, seeds: int) -> dict[str, np.ndarray]:
    """Return what a port is before it trains.

    Returns:
        `layers` and `parameters`, names and numbers in the order of the data's way through them, `all_parameters`, how
        many the port has in all; `shape/<layer>` as
        Keras has it, H, W, C; `train/images`, `train/labels`, `train/pixels`, `train/one_hot` and the same of `test`:
        digests of the arrays as they reach the model, in float32; `initial/<seed>/<key>`; `order` [10, I]: the training
        images in the order of each epoch; `same_order`, whether a second data module with the same seed has the same;
        `batch_sizes` of an epoch, and the `documented_batch_sizes`, where 100 are asked for; `images`, how many there
        are to train on.
    """
    candidate_class = load_candidate(candidate)
    module = candidate_class(learning_rate=0.001)
    layout = Layout(module, candidate)
    if data_module(candidate_class).train_dataloader is not MNISTDataModule.train_dataloader:
        raise InputError(
            f"--candidate {candidate}: its data module has to serve what `train_batches` returns, no other way"
        )
    data = data_module(candidate_class)(data_dir, batch_size=128)  # does not divide 60,000
    data.prepare_data()
    data.setup()
    trainer = make_trainer(1, None, "32-true")
    trainer.strategy.connect(module)
    data.trainer = trainer

    activations = layout.activations(torch.zeros(1, 1, 28, 28))
    recorded = {
        "layers": np.array(list(activations)),
        "parameters": np.array([sum(p.numel() for p in layout.layers[name].parameters()) for name in activations]),
        "all_parameters": np.array(sum(p.numel() for p in module.parameters())),
    }
    for name, array in activations.items():
        recorded[f"shape/{name}"] = np.array(array.shape[1:])
    for split, dataset in (("train", data.train), ("test", data.test)):
        images, labels = dataset.tensors
        pixels, rows = data.on_after_batch_transfer((images, labels), 0)
        recorded[f"{split}/images"] = digest(images.numpy())
        recorded[f"{split}/labels"] = digest(labels.numpy().astype(np.uint8))
        recorded[f"{split}/pixels"] = digest(pixels.movedim(1, -1).numpy())
        recorded[f"{split}/one_hot"] = digest(rows.numpy())

    for seed in range(seeds):
        L.seed_everything(seed, verbose=False)
        drawn = Layout(candidate_class(learning_rate=0.001), candidate)
        recorded |= drawn.keyed(f"initial/{seed}", drawn.parameters)

    documented = data_module(candidate_class)(data_dir, batch_size=100)
    documented.setup()
    documented.trainer = trainer
    epochs, (again,) = batches_of(data, epochs=10), batches_of(documented, epochs=1)
    orders = [torch.cat(epoch).numpy() for epoch in epochs]
    longest = max(map(len, orders))
    recorded["order"] = np.stack([np.pad(order, (0, longest - len(order)), constant_values=-1) for order in orders])
    recorded["same_order"] = np.array(np.array_equal(orders[0], torch.cat(again).numpy()))
    recorded["batch_sizes"] = np.array([len(batch) for batch in epochs[0]])
    recorded["documented_batch_sizes"] = np.array([len(batch) for batch in again])
    recorded["images"] = np.array(len(data.train))
    return recorded


def batches_of(data: MNISTDataModule, epochs: int) -> list[list[Tensor]]:
    """Return the indices of every batch of some epochs."""
    batches = data.train_batches()
    listed = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        listed.append(list(batches))
    return listed


def load_candidate(name: str) -> type[L.LightningModule]:
    """Import a class named as package.module:Class."""
    module_name, _, class_name = name.partition(":")
    try:
        candidate = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # its file may do anything
        raise InputError(
            f"--candidate {name}: {type(error).__name__}: {error}; expected package.module:Class"
        ) from error
    if not (isinstance(candidate, type) and issubclass(candidate, L.LightningModule)):
        raise InputError(f"--candidate {name}: not a LightningModule")
    return candidate


class Layout:
    """Read and write a candidate's tensors in Keras' layout, and what its layers give."""

    def __init__(self, module: L.LightningModule, candidate: str) -> None:
        self.module = module
        self.to_keras = getattr(module, "to_keras", weights.to_keras)
        self.from_keras = getattr(module, "from_keras", weights.from_keras)
        self.activation_to_keras = getattr(module, "activation_to_keras", weights.activation_to_keras)
        by_name = {name.rpartition(".")[2]: layer for name, layer in module.named_modules()}
        missing = [name for name in LAYERS if name not in by_name]
        if missing:
            raise InputError(f"--candidate {candidate}: has no layer named {missing[0]}")
        self.layers = {name: by_name[name] for name in LAYERS}
        # Of the layers alone: what a candidate has besides shows in the total that rung 2 compares.
        self.parameters = {
            n: p for n, p in module.named_parameters() if n.rpartition(".")[0].rpartition(".")[2] in LAYERS
        }

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        for name, tensor in self.from_keras(arrays).items():
            layer, kind = name.split(".")[-2:]
            parameter = getattr(self.layers[layer], kind, None)
            if parameter is None:
                raise InputError(
                    f"--candidate: its layer {layer} has no {kind} (lit_mnist/recording.py says what it needs)"
                )
            with torch.no_grad():
                parameter.copy_(tensor)

    def keyed(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        # A copy: a candidate may return what the next step changes.
        return {f"{prefix}/{key}": np.array(array) for key, array in self.to_keras(tensors).items()}

    def state(self, prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
        """Return the weights and the moments of Adam, as far as the optimizer keeps them."""
        parameters = self.parameters
        arrays = self.keyed(f"{prefix}weights", parameters)
        for kind, moment in (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq")):
            if all(moment in optimizer.state[parameter] for parameter in parameters.values()):
                moments = {name: optimizer.state[parameter][moment] for name, parameter in parameters.items()}
                arrays |= self.keyed(f"{prefix}{kind}", moments)
        return arrays

    def activations(self, images: Tensor) -> dict[str, np.ndarray]:
        """Return what each layer gives for images [N, 1, 28, 28], activation function included, in the order of layers.

        ReLU is applied once more to what leaves a layer: of no effect where it was applied, and it makes a port that
        pools before ReLU comparable. A ReLU that is missing shows in the next layer.
        """
        seen: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
            for name, layer in self.layers.items()
        ]
        with torch.no_grad():
            probabilities = self.module(images)
        for hook in hooks:
            hook.remove()
        shown = {name: F.relu(tensor) for name, tensor in seen.items()} | {"output": probabilities}
        return {name: self.activation_to_keras(tensor) for name, tensor in shown.items()}


class Progress(L.Callback):
    """Tell how far a training has come."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(trainer.global_step, int(trainer.estimated_stepping_batches))


class Reports(Checkpoint):
    """Keep what is logged for each epoch.

    It is a `Checkpoint` because Lightning calls those last, after the module's own hook at the end of an epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def arrays(self, *names: str) -> dict[str, np.ndarray]:
        """Return those of the named values that were logged in every epoch, [epochs]."""
        return {
            name: np.array([epoch[name] for epoch in self.epochs])
            for name in names
            if all(name in epoch for epoch in self.epochs)
        }


class Recorder(Reports):
    """Keep the loss and the accuracy of every batch before its update, each epoch's report, and more where asked."""

    def __init__(
        self, given: TraceInputs, layout: Layout, checkpoint: Path | None = None, kill_after: int | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.checkpoint, self.kill_after = checkpoint, kill_after
        self.record_at = set(given.record_at.tolist())
        self.recorded: dict[str, np.ndarray] = {}
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
        checkpoint["recorded"] = {"steps": trainer.strategy.reduce(everyone, reduce_op="sum"), "epochs": self.epochs}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.losses, self.accuracies = checkpoint["recorded"]["steps"][trainer.global_rank].tolist()
        self.epochs = checkpoint["recorded"]["epochs"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        images, labels = batch
        with torch.no_grad():
            predicted = pl_module(images).argmax(dim=1)
        self.accuracies.append((predicted == labels.argmax(dim=1)).double().mean().item())
        if trainer.world_size > 1:
            return  # each process sees its share of the batch
        if self.step == 0:  # part of what a trace records, whoever reads it; the ladder asks for single steps
            self.recorded |= {f"activations/{name}": array for name, array in self.layout.activations(images).items()}
        if self.step in self.record_at:
            prefix = f"activations/{self.step}"
            self.recorded |= {f"{prefix}/{name}": array for name, array in self.layout.activations(images).items()}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.step in self.record_at:
            gradients = {name: p.grad for name, p in self.layout.parameters.items() if p.grad is not None}
            self.recorded |= self.layout.keyed(f"gradients/{self.step}", gradients)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.step in self.record_at:
            self.recorded |= self.layout.state(f"after/{self.step}/", trainer.optimizers[0])
        if not outputs:
            raise InputError("--candidate: training_step returned no loss")
        self.losses.append(outputs["loss"].item())
        if self.step == self.kill_after:
            assert self.checkpoint is not None
            trainer.save_checkpoint(self.checkpoint)
            os.kill(os.getpid(), signal.SIGKILL)

    def finished(self, strategy: Strategy) -> dict[str, np.ndarray]:
        history = self.arrays("train_loss", "train_accuracy")
        # Of equal shares, as they must be, the mean over the devices is the mean over the batch.
        steps = {
            name: strategy.reduce(torch.tensor(values, dtype=torch.float64), reduce_op="mean").numpy()
            for name, values in (("loss", self.losses), ("accuracy", self.accuracies))
        }
        return self.recorded | {name.replace("train_", "history/"): array for name, array in history.items()} | steps


def data_module(candidate: type[L.LightningModule]) -> type[MNISTDataModule]:
    return getattr(candidate, "data_module", MNISTDataModule)


def given_batches(given: TraceInputs, base: type[MNISTDataModule]) -> MNISTDataModule:
    """Make a data module that does all as `base` does, but serves the batches of a trace.

    How they are shared out among several devices is left to the `Batches` of `base`.
    """

    class GivenBatches(base):  # type: ignore[misc, valid-type]
        def train_batches(self) -> Batches:
            assert self.trainer is not None
            batches = super().train_batches() if self.trainer.world_size > 1 else Batches(np.arange(1), 1)
            batches.steps = given.steps_per_epoch
            batches.whole_batches = lambda: given.rows(batches.epoch)  # type: ignore[method-assign]
            return batches

    return GivenBatches(given.data_dir, batch_size=given.batches.shape[1], verify_data=given.verify_data)

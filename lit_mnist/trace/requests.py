"""What `keras_ref.parity` asks the port's side for: functions of a candidate that return arrays."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml

from lit_mnist.data import MNISTDataModule
from lit_mnist.errors import InputError
from lit_mnist.keras_files import read_keras_file
from lit_mnist.trace.arrays import load_examples, row_digests
from lit_mnist.trace.candidate import Candidate
from lit_mnist.trace.files import TraceInputs, digest
from lit_mnist.trace.mapped import MappedCandidate
from lit_mnist.trace.training import Progress, make_trainer, trace_training, train_as_documented, train_freely

EPOCHS = 10  # whose order is looked at
LOADED_EPOCHS = 2  # of a loader that the port brings


def facts(
    progress: Progress, candidate: str, model: str, data: str, layers: str, data_dir: str, seeds: int
) -> dict[str, np.ndarray]:
    """Return what a port is before it trains.

    Returns:
        `initial/<seed>/<key>`; of a port of the documented model what `_documented` adds, of another what
        `MappedCandidate.facts` and `Examples.digests` do, and `mapping` as JSON: of each layer the path of its module,
        how it was found, and whether the port gives logits. Of a port that brings its own loader, `loader/inputs`
        [epochs, I] and `loader/targets`, a number for each example, and `loader/batch_sizes` of an epoch.
    """
    if not model:
        arrays = _documented(candidate, data_dir)
        port: Candidate | MappedCandidate = Candidate(candidate)
    else:
        port = resolve(candidate, model, data, layers)
        assert isinstance(port, MappedCandidate)
        arrays = port.facts() | port.examples.digests()
        mapping = {layer: [port.paths[layer], port.how[layer]] for layer in port.paths}
        arrays["mapping"] = np.array(json.dumps({"layers": mapping, "trains": port.trains, "logits": port.logits}))
    for seed in range(seeds):
        L.seed_everything(seed, verbose=False)
        arrays |= resolve(candidate, model, data, layers).arrays(f"initial/{seed}")
    return arrays | own_loader(port, data_dir)


def resolve(
    candidate: str, model: str, data: str, layers: str, learning_rate: float | None = None, dtype: str = "float32"
) -> Candidate | MappedCandidate:
    """Return the candidate, made anew.

    Args:
        candidate: name of it.
        model: file (.json) that describes the Keras model; "" for the documented one.
        data: name of the function that returns its examples.
        layers: file (.yaml) that maps names of layers to paths of modules; "" for none.
        learning_rate: of a port of the documented model; others have their own.
        dtype: that it computes in.

    Raises:
        InputError: if a file or the candidate is not what is expected.
    """
    torch_dtype = getattr(torch, dtype)
    if not model:
        return Candidate(candidate, 0.001 if learning_rate is None else learning_rate, torch_dtype)
    named: Any = {}
    if layers:
        try:
            named = yaml.safe_load(Path(layers).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"--layers {layers}: {' '.join(str(error).split())}") from error
        if not isinstance(named, dict) or not all(isinstance(name, str) for pair in named.items() for name in pair):
            raise InputError(f"--layers {layers}: expected lines like   dense_1: model.hidden")
    described = json.loads(Path(model).read_text())
    return MappedCandidate(candidate, described, load_examples(data), named, torch_dtype)


def _documented(candidate: str, data_dir: str) -> dict[str, np.ndarray]:
    """Return what a port of the documented model is before it trains.

    Returns:
        `layers` and `parameters`, names and numbers in the order of the data's way through them, `all_parameters`, how
        many the port has in all; `shape/<layer>` as Keras has it, H, W, C; `train/images`, `train/labels`,
        `train/pixels`, `train/one_hot` and the same of `test`: digests of the arrays as they reach the model, in
        float32; `order` [10, I]: the training images in the order of each epoch; `same_order`, whether a second data
        module with the same seed has the same; `batch_sizes` of an epoch, and the `documented_batch_sizes`, where the
        documented size is asked for; `images`, how many there are to train on.
    """
    port = Candidate(candidate)
    data = port.data_module(data_dir, batch_size=128)  # does not divide 60,000
    data.setup()
    trainer = make_trainer(1, "float32", [])
    trainer.strategy.connect(port.module)
    data.trainer = trainer

    shapes = port.activations("shape", torch.zeros(1, 1, 28, 28))
    layers = [name.removeprefix("shape/") for name in shapes]
    arrays = {
        "layers": np.array(layers),
        "parameters": np.array([sum(p.numel() for p in port.layers[name].parameters()) for name in layers]),
        "all_parameters": np.array(sum(p.numel() for p in port.module.parameters())),
    } | {name: np.array(array.shape[1:]) for name, array in shapes.items()}
    for split, dataset in (("train", data.train), ("test", data.test)):
        images, labels = dataset.tensors
        pixels, one_hot = data.on_after_batch_transfer((images, labels), 0)
        arrays[f"{split}/images"] = digest(images.numpy())
        arrays[f"{split}/labels"] = digest(labels.numpy().astype(np.uint8))
        arrays[f"{split}/pixels"] = digest(pixels.movedim(1, -1).numpy())
        arrays[f"{split}/one_hot"] = digest(one_hot.numpy())
    return arrays | _order(port, data, data_dir)


def _order(port: Candidate, data: MNISTDataModule, data_dir: str) -> dict[str, np.ndarray]:
    documented = port.data_module(data_dir, batch_size=100)
    documented.setup()
    epochs, again = [data.order(epoch) for epoch in range(EPOCHS)], documented.order(0)
    orders = [np.concatenate(batches) for batches in epochs]
    longest = max(map(len, orders))
    return {
        "order": np.stack([np.pad(order, (0, longest - len(order)), constant_values=-1) for order in orders]),
        "same_order": np.array(np.array_equal(orders[0], np.concatenate(again))),
        "batch_sizes": np.array([len(batch) for batch in epochs[0]]),
        "documented_batch_sizes": np.array([len(batch) for batch in again]),
        "images": np.array(len(data.train)),
    }


def own_loader(port: Candidate | MappedCandidate, data_dir: str) -> dict[str, np.ndarray]:
    """Return what the loader of training examples gives that the port itself brings, if it does: two epochs of it.

    Raises:
        InputError: if it raises.
    """
    module, brought = port.module, _brought(port, data_dir)
    if brought is None or not isinstance(module, L.LightningModule):
        return {}
    trainer = make_trainer(1, "float32", [])
    trainer.strategy.connect(module)
    if isinstance(brought, L.LightningDataModule):
        brought.trainer = trainer
    try:
        brought.prepare_data()
        brought.setup("fit")
        loader = brought.train_dataloader()
        epochs = [[_prepared(batch, module, brought) for batch in loader] for _ in range(LOADED_EPOCHS)]
    except InputError:
        raise
    except Exception as error:  # whatever it does
        raise InputError(f"--candidate {port.name}: its train_dataloader: {type(error).__name__}: {error}") from error
    if not all(epochs):
        raise InputError(f"--candidate {port.name}: its train_dataloader gives no batch")
    sizes = [len(inputs) for inputs, _ in epochs[0]]
    rows = [[np.concatenate([batch[part] for batch in epoch]) for epoch in epochs] for part in (0, 1)]
    shortest = min(map(len, rows[0]))
    return {
        "loader/inputs": np.stack([row_digests((port.loaded_inputs(epoch[:shortest]),)) for epoch in rows[0]]),
        "loader/targets": np.stack([row_digests((epoch[:shortest],)) for epoch in rows[1]]),
        "loader/batch_sizes": np.array(sizes),
    }


def _brought(port: Candidate | MappedCandidate, data_dir: str) -> Any:
    """Return the module or data module whose loader of training examples a port brings itself; None if it does not."""
    module = port.module
    if not isinstance(module, L.LightningModule):
        return None
    if type(module).train_dataloader is not L.LightningModule.train_dataloader:
        return module
    if isinstance(port, MappedCandidate):
        return module.data_module() if hasattr(module, "data_module") else None  # type: ignore[operator]  # a class
    own = port.data_module.train_dataloader is not MNISTDataModule.train_dataloader
    return port.data_module(data_dir) if own else None


def _prepared(batch: Any, module: L.LightningModule, brought: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets as training_step gets them."""
    for owner in dict.fromkeys((module, brought)):
        batch = owner.on_before_batch_transfer(batch, 0)
        batch = owner.on_after_batch_transfer(batch, 0)
    return batch[0].detach().numpy(), batch[1].detach().numpy()


def trace(
    progress: Progress,
    candidate: str,
    model: str,
    data: str,
    layers: str,
    data_dir: str,
    inputs: str,
    accelerator: str = "cpu",
) -> dict[str, np.ndarray]:
    """Return the trace of a training that is given in a file."""
    given = TraceInputs.read(Path(inputs))
    port = resolve(candidate, model, data, layers, given.learning_rate, given.dtype)
    return trace_training(given, port, progress, accelerator=accelerator)


def load(
    progress: Progress, candidate: str, model: str, data: str, layers: str, data_dir: str, file: str
) -> dict[str, np.ndarray]:
    """Return `loaded/<key>`: the weights of a candidate that has loaded a file of Keras."""
    arrays = read_keras_file(file)
    (dtype,) = {str(array.dtype) for array in arrays.values()}
    port = resolve(candidate, model, data, layers, dtype=dtype)
    port.load(arrays)
    return port.arrays("loaded")


def results(
    progress: Progress,
    candidate: str,
    model: str,
    data: str,
    layers: str,
    data_dir: str,
    seed: int,
    accelerator: str = "cpu",
    epochs: int = 10,
    batch_size: int = 100,
) -> dict[str, np.ndarray]:
    """Return what a training from start weights and in an order of its own comes to: `test_loss` and the metrics."""
    if model:
        L.seed_everything(seed, verbose=False)
        port = resolve(candidate, model, data, layers)
        assert isinstance(port, MappedCandidate)
        return train_freely(port, _brought(port, data_dir), seed, epochs, batch_size, progress, accelerator)
    return train_as_documented(candidate, data_dir, seed, progress=progress, accelerator=accelerator)

"""What `keras_ref.parity` asks the port's side for: functions of a candidate that return arrays."""

from pathlib import Path

import lightning as L
import numpy as np
import torch

from lit_mnist.data import MNISTDataModule
from lit_mnist.errors import InputError
from lit_mnist.keras_files import read_keras_file
from lit_mnist.trace.candidate import Candidate
from lit_mnist.trace.files import TraceInputs, digest
from lit_mnist.trace.training import Progress, make_trainer, trace_training, train_as_documented

EPOCHS = 10  # whose order is looked at


def facts(progress: Progress, candidate: str, data_dir: str, seeds: int) -> dict[str, np.ndarray]:
    """Return what a port is before it trains.

    Returns:
        `layers` and `parameters`, names and numbers in the order of the data's way through them, `all_parameters`, how
        many the port has in all; `shape/<layer>` as Keras has it, H, W, C; `train/images`, `train/labels`,
        `train/pixels`, `train/one_hot` and the same of `test`: digests of the arrays as they reach the model, in
        float32; `initial/<seed>/<key>`; `order` [10, I]: the training images in the order of each epoch; `same_order`,
        whether a second data module with the same seed has the same; `batch_sizes` of an epoch, and the
        `documented_batch_sizes`, where the documented size is asked for; `images`, how many there are to train on.
    """
    port = Candidate(candidate)
    if port.data_module.train_dataloader is not MNISTDataModule.train_dataloader:
        raise InputError(f"--candidate {candidate}: its data module has to serve what `train_order` returns")
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

    for seed in range(seeds):
        L.seed_everything(seed, verbose=False)
        arrays |= Candidate(candidate).arrays(f"initial/{seed}")
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


def trace(progress: Progress, candidate: str, inputs: str) -> dict[str, np.ndarray]:
    """Return the trace of a training that is given in a file."""
    return trace_training(TraceInputs.read(Path(inputs)), candidate, progress)


def load(progress: Progress, candidate: str, file: str) -> dict[str, np.ndarray]:
    """Return `loaded/<key>`: the weights of a candidate that has loaded a file of Keras."""
    arrays = read_keras_file(file)
    (dtype,) = {str(array.dtype) for array in arrays.values()}
    port = Candidate(candidate, dtype=getattr(torch, dtype))
    port.load(arrays)
    return port.arrays("loaded")


def results(progress: Progress, candidate: str, data_dir: str, seed: int) -> dict[str, np.ndarray]:
    """Return what a whole training from a seed comes to."""
    return train_as_documented(candidate, data_dir, seed, progress=progress)

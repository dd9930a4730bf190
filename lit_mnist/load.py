"""A trained model out of a file: a checkpoint, the newest of a run, or what Keras saved. Foreign files run nothing."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_mnist.errors import InputError
from lit_mnist.keras_files import HDF5, read_keras_file
from lit_mnist.module import LitMNIST
from lit_mnist.runs.checkpoints import UnusableCheckpointError, load_checkpoint, read_settings
from lit_mnist.runs.directory import find_checkpoint
from lit_mnist.weights import from_keras


@dataclass(frozen=True)
class Trained:
    """A trained model and where it comes from.

    Attributes:
        module: on the CPU, in evaluation mode, in the dtype of the weights in the file.
        path: of the file.
        settings: of its training, as `lit_mnist.train` writes them into a checkpoint; none of other files.
    """

    module: LitMNIST
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The name of its run, or else that of the file."""
        in_a_run = self.path.absolute().parent.name == "checkpoints"
        return self.path.absolute().parent.parent.name if in_a_run else self.path.name


def load_model(path: str | Path | None = None) -> LitMNIST:
    """Load a trained model: calling it turns images, as `preprocess` returns them, into probabilities [N, 10].

    Args:
        path: a checkpoint; a run directory, whose newest checkpoint is taken; or a file of Keras (.keras, .weights.h5,
            .h5). None takes the newest run below `runs`.

    Returns:
        The model on the CPU, in evaluation mode, in the dtype of the weights in the file.

    Raises:
        InputError: if there is no such file, or it does not hold the documented model.
    """
    return load_trained(path).module


def load_trained(path: str | Path | None = None) -> Trained:
    """Load a model as `load_model` does, and say where it comes from."""
    file = find_checkpoint(path)
    if _is_of_keras(file):
        return Trained(_module(from_keras(read_keras_file(file))), file)
    checkpoint = load_checkpoint(file)
    try:
        tensors = checkpoint["state_dict"]
        prefix = "model."
        named = {name.replace("._orig_mod.", "."): tensors[name] for name in tensors}  # of torch.compile(module.model)
        weights = {name.removeprefix(prefix): named[name] for name in named if name.startswith(prefix)}
        module = _module(weights)
    except Exception as error:  # a forged file may hold anything where tensors are expected; it is refused
        reason = " ".join(str(error).split())[:200]
        raise UnusableCheckpointError(f"{file}: not a checkpoint of the documented model ({reason})") from error
    return Trained(module, file, read_settings(checkpoint))


def _is_of_keras(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            if stream.read(len(HDF5)) == HDF5:
                return True
        with zipfile.ZipFile(file) as archive:
            return "model.weights.h5" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return file.suffix in (".keras", ".h5")  # the name says which of the two readers is to say what is wrong


def _module(weights: Mapping[str, Tensor]) -> LitMNIST:
    module = LitMNIST()
    expected = {name: tensor.shape for name, tensor in module.model.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights.get(name)
        if not isinstance(found, Tensor) or found.shape != expected.get(name):
            shape = list(found.shape) if isinstance(found, Tensor) else "missing"
            raise InputError(f"{name} is {shape}, expected {list(expected[name]) if name in expected else 'none'}")
        if not found.is_floating_point() or not found.isfinite().all():
            raise InputError(f"{name} has values that are no finite numbers")
    (dtype, *others) = {tensor.dtype for tensor in weights.values()}
    if others or dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"its weights are {dtype}, {others}")
    module.to(dtype).model.load_state_dict(dict(weights))
    return module.eval()

"""The port of the documented model that is compared, found by its name; `mapped.py` has those of other models."""

import importlib
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist import weights
from lit_mnist.data import MNISTDataModule
from lit_mnist.errors import InputError
from lit_mnist.layout import LAYERS
from lit_mnist.model import INPUT_SHAPE
from lit_mnist.trace.files import TraceInputs


class Candidate:
    """A port, named as `package.module:Class`, made once. What it has to offer in order to be compared:

    - It is a `LightningModule` that is made as `Class(learning_rate=...)`.
    - It has layers named conv, pool, flatten, hidden and output somewhere in it, of which conv, hidden and output have
      `weight` and `bias` in torch's layout, flattened channel, row, column. A port with another layout says so with
      static methods in place of those of `lit_mnist.weights`: `from_keras(arrays)`, from NumPy arrays by the keys of
      `lit_mnist.layout.WEIGHTS` ("conv/kernel") to tensors by name ("conv.weight", any prefix); `to_keras(tensors)`,
      the way back; `activation_to_keras(tensor)`, from what a layer gives to an array as Keras has it, [N, H, W, C].
    - `training_step((images, labels), batch_idx)` returns the loss of images [N, 1, 28, 28] in [0, 1] and one-hot
      labels [N, 10]; calling it with images gives probabilities [N, 10].
    - If it prepares its data in its own way, `data_module` names its subclass of `MNISTDataModule`, with a
      `train_order`, a `test_order` or an `on_after_batch_transfer` of its own.
    - It logs `train_loss` and `train_accuracy` once an epoch (`on_step=False, on_epoch=True`) and, if it has a
      `test_step`, `test_loss` and `test_accuracy` with it (without, rung 10 does not look at them): as tensors in the
      dtype of the training, since Lightning rounds numbers to 32 bits; for rung 12 with `sync_dist=True`; for rung 13
      as averages of the whole epoch, of which a checkpoint holds the sums so far (`LitMNIST` saves its own: `self.log`
      alone begins anew).
    - `configure_optimizers` returns an optimizer that keeps `exp_avg` and `exp_avg_sq`, as torch's Adam does.

    Args:
        name: the class, in a file of the current directory or of PYTHONPATH.
        learning_rate: that it is made with.
        dtype: that it computes in.

    Raises:
        InputError: if there is no such class, or it has not the layers.
    """

    input_shape = INPUT_SHAPE
    modal = False  # no layer does something else in training
    is_tested = True

    def __init__(self, name: str, learning_rate: float = 0.001, dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        module = make_module(name, learning_rate=learning_rate).to(dtype)
        if not isinstance(module, L.LightningModule):
            raise InputError(f"--candidate {name}: not a LightningModule")
        self.module = module
        self.data_module: type[MNISTDataModule] = getattr(self.module, "data_module", MNISTDataModule)
        self.to_keras = getattr(self.module, "to_keras", weights.to_keras)
        self.from_keras = getattr(self.module, "from_keras", weights.from_keras)
        self.activation_to_keras = getattr(self.module, "activation_to_keras", weights.activation_to_keras)
        by_name = {path.rpartition(".")[2]: layer for path, layer in self.module.named_modules()}
        missing = [layer for layer in LAYERS if layer not in by_name]
        if missing:
            raise InputError(f"--candidate {name}: has no layer named {missing[0]}")
        self.layers = {layer: by_name[layer] for layer in LAYERS}
        # Of the layers alone: what a candidate has besides shows in the total that rung 2 compares.
        self.parameters = {
            path: parameter
            for path, parameter in self.module.named_parameters()
            if path.rpartition(".")[0].rpartition(".")[2] in LAYERS
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the weights to arrays in Keras' layout.

        Raises:
            InputError: if they are not those of the documented model, or there is no place for one.
        """
        try:
            tensors = self.from_keras(arrays)
        except ValueError as error:
            raise InputError(str(error)) from error
        for path, tensor in tensors.items():
            layer, kind = path.split(".")[-2:]
            parameter = getattr(self.layers[layer], kind, None)
            if parameter is None:
                raise InputError(
                    f"--candidate {self.name}: its layer {layer} has no {kind} (lit_mnist/trace/candidate.py says what "
                    "it needs)"
                )
            with torch.no_grad():
                parameter.copy_(tensor)

    def arrays(self, prefix: str, tensors: Mapping[str, Tensor] | None = None) -> dict[str, np.ndarray]:
        """Return tensors named as its parameters, or these, in Keras' layout, keyed as in "<prefix>/conv/kernel"."""
        # A copy: a candidate may return what the next step changes.
        arrays = self.to_keras(self.parameters if tensors is None else tensors)
        return {f"{prefix}/{key}": np.array(array) for key, array in arrays.items()}

    def state(self, prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
        """Return the weights and, if the optimizer keeps any, the moments of Adam: NaN for a tensor that has none."""
        arrays = self.arrays(f"{prefix}weights")
        for kind, moment in (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq")):
            moments = {path: optimizer.state[p].get(moment) for path, p in self.parameters.items()}
            if any(tensor is not None for tensor in moments.values()):
                known = {
                    path: torch.full_like(self.parameters[path], torch.nan) if tensor is None else tensor
                    for path, tensor in moments.items()
                }
                arrays |= self.arrays(f"{prefix}{kind}", known)
        return arrays

    def data(self, given: TraceInputs) -> MNISTDataModule:
        """Return the batches of a training."""
        size = given.batches.shape[1]
        return self.data_module(given.data_dir, batch_size=size, verify_data=given.verify_data, order=given.order)

    def accuracy(self, batch: tuple[Tensor, Tensor]) -> float:
        """Return the share of a batch that it classifies right."""
        images, labels = batch
        with torch.no_grad():
            predicted = self.module(images).argmax(dim=1)
        return (predicted == labels.argmax(dim=1)).double().mean().item()

    def loaded_inputs(self, images: np.ndarray) -> np.ndarray:
        """Turn what its own loader gives, [N, 1, 28, 28], into what Keras takes."""
        return np.moveaxis(images, 1, -1)

    def predicted(self, probabilities: np.ndarray) -> np.ndarray:
        """Return what it predicted as Keras does."""
        return probabilities

    def give_draws(self, *_: Any) -> None:
        """The documented model draws nothing."""

    def watching(self, prefix: str) -> Any:
        """Its layers give the same in training."""
        raise NotImplementedError

    def activations(self, prefix: str, images: Tensor) -> dict[str, np.ndarray]:
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
            self.module(images)
            for hook in hooks:
                hook.remove()
            probabilities = self.module(images)  # as when nobody watches: some take a shorter way then
        shown = {name: F.relu(tensor) for name, tensor in seen.items()} | {"output": probabilities}
        return {f"{prefix}/{name}": self.activation_to_keras(tensor) for name, tensor in shown.items()}


def make_module(name: str, **arguments: Any) -> nn.Module:
    """Call `package.module:Class`, or a function, that makes a module.

    Args:
        name: of it, in a file of the current directory or of PYTHONPATH.
        arguments: that it is called with.

    Raises:
        InputError: if there is no such thing, it raises, or does not make a module.
    """
    module_name, _, class_name = name.partition(":")
    module_name = module_name.removesuffix(".py")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # its file may do anything
        raise InputError(
            f"--candidate {name}: {type(error).__name__}: {error}; expected package.module:Class"
        ) from error
    if isinstance(factory, type) and not issubclass(factory, nn.Module):
        raise InputError(f"--candidate {name}: not a LightningModule")
    module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise InputError(f"--candidate {name}: gives a {type(module).__name__}; expected a LightningModule")
    return module

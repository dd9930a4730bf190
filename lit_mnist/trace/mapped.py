"""The port of any Keras model: a candidate whose modules are mapped to the layers of a description."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_mnist.data import Batches, Order, ResumableLoader, SharedInOrder, cut
from lit_mnist.errors import InputError
from lit_mnist.trace.arrays import Examples
from lit_mnist.trace.candidate import make_module
from lit_mnist.trace.files import Arrays, TraceInputs, dropout_examples, dropout_facts, dropout_mask
from lit_mnist.trace.mapping import Order as AxisOrder
from lit_mnist.trace.mapping import Slot, map_layers, orders, slots_of, tensor_at

PREDICTED_AT_ONCE = 1_000

# Of what leaves a layer; the first is of no effect where it was applied already.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "softplus": F.softplus,
    "exponential": torch.exp,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
}

# Names in files of what torch's optimizers keep, by the name of Keras' optimizer.
ADAM = {"exp_avg": "adam_m", "exp_avg_sq": "adam_v", "max_exp_avg_sq": "velocity_hat"}
KEPT: dict[str, dict[str, str]] = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "RMSprop": {"square_avg": "velocity", "momentum_buffer": "momentum", "grad_avg": "average_gradient"},
    "SGD": {"momentum_buffer": "momentum"},
    "Adagrad": {"sum": "accumulator"},
}


class MappedCandidate:
    """A port of a Keras model, made once. What it has to offer in order to be compared:

    - It is a `LightningModule`, or a function that returns one, made without arguments. Of a plain `nn.Module`
      structure, weights and what it gives are compared, not its training.
    - Every layer that has weights, and every Dropout, has a module (`lit_mnist.trace.mapping` says which and how it is
      found). For kinds of layers that are not known there it brings `from_keras(arrays)`, from NumPy arrays by Keras'
      names ("conv/kernel") to tensors by their paths ("model.conv.weight"), and `to_keras(tensors)`, the way back;
      `activation_to_keras(layer, tensor)` and `input_from_keras(array)` where axes stand in another order.
    - `training_step((x, y), batch_idx)` returns the loss, with what regularises it; of `(x, y, sample_weight)` where
      the data have weights. Calling it with x gives what the Keras model gives, or logits in place of probabilities.
    - It logs `train_loss`, and `train_<metric>` for the metrics that the Keras model was compiled with, once an epoch.

    Args:
        name: the class or function, in a file of the current directory or of PYTHONPATH.
        model: description of the Keras model.
        examples: that are trained on.
        layers: from names of layers to paths of modules, where names do not say it.
        dtype: that it computes in.

    Raises:
        InputError: if there is no such candidate, or a layer has no module.
    """

    def __init__(
        self,
        name: str,
        model: Mapping[str, Any],
        examples: Examples,
        layers: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.model, self.examples = name, model, examples
        self.module = make_module(name).to(dtype)
        self.trains = isinstance(self.module, L.LightningModule)
        self.described = {layer["name"]: layer for layer in model["layers"]}
        self.paths, self.how = map_layers(model, self.module, layers or {}, name)
        self.layers = {layer: self.module.get_submodule(path) for layer, path in self.paths.items()}
        self.orders = orders(model)
        self.slots: list[Slot] = []
        self.hooks = getattr(self.module, "from_keras", None), getattr(self.module, "to_keras", None)
        if self.hooks == (None, None):
            for layer in self.layers:
                described = self.described[layer]
                before = self.orders[described["inputs"][0] if described["inputs"] else ""]
                self.slots += slots_of(described, self.paths[layer], self.layers[layer], before)
        self.logits = False

    @property
    def modal(self) -> bool:
        """Whether a layer does something else in training."""
        return any(layer["class"] in ("Dropout", "BatchNormalization") for layer in self.described.values())

    @property
    def is_tested(self) -> bool:
        """Whether there are examples to test on."""
        return self.examples.tests is not None

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters())

    def accuracy(self, batch: Any) -> None:
        """Not kept: what is right in an example is the model's own affair."""

    def predicted(self, raw: np.ndarray) -> np.ndarray:
        """Return what it predicted as Keras does."""
        return self.outputs(torch.from_numpy(raw)).numpy()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def load(self, arrays: Arrays) -> None:
        """Set the weights to arrays in Keras' layout, and find out with them whether it gives logits.

        Raises:
            InputError: if one has no place, or another shape there.
        """
        for path, tensor in self._tensors(arrays).items():
            own = tensor_at(self.module, path)
            if own is None or own.shape != tensor.shape:
                there = "no such tensor" if own is None else tuple(own.shape)
                raise InputError(
                    f"--candidate {self.name}: {path} is {there}; Keras' weights are {tuple(tensor.shape)}"
                )
            with torch.no_grad():
                own.copy_(tensor)
        if not self.logits:
            self._find_out_logits()

    def _tensors(self, arrays: Arrays) -> dict[str, Tensor]:
        from_keras, _ = self.hooks
        if from_keras is not None:
            return dict(from_keras(arrays))
        tensors = {}
        for slot in self.slots:
            for path, array in zip(slot.paths, slot.split(np.asarray(arrays[slot.key])), strict=True):
                tensors[path] = torch.from_numpy(np.ascontiguousarray(array))
        return tensors

    def arrays(self, prefix: str, tensors: Mapping[str, Tensor] | None = None) -> dict[str, np.ndarray]:
        """Return its weights in Keras' layout, keyed as in "<prefix>/conv/kernel"; or what belongs to them, by path."""
        weights = tensors is None
        if tensors is None:
            tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        _, to_keras = self.hooks
        if to_keras is not None:
            return {f"{prefix}/{key}": np.array(array) for key, array in to_keras(tensors).items()}
        arrays = {}
        for slot in self.slots:
            own = [_dense(tensors[path]) for path in slot.paths if path in tensors]
            if own:
                arrays[f"{prefix}/{slot.key}"] = np.array(slot.join(own, weights and len(own) == len(slot.paths)))
        return arrays

    def state(self, prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
        """Return the weights, and what the optimizer keeps of them under the names of Keras' slots."""
        arrays = self.arrays(f"{prefix}weights")
        parameters = dict(self.module.named_parameters())
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        kept = {name: slot for slot, name in getattr(optimizer, "keras_slots", {}).items()}
        for name, slot in (kept or KEPT.get(self.model["optimizer"], {})).items():
            own = {
                path: optimizer.state[p][name] * _folded(optimizer, name, rate[id(p)])
                for path, p in parameters.items()
                if isinstance(optimizer.state.get(p, {}).get(name), Tensor)
            }
            if own:
                arrays |= self.arrays(f"{prefix}{slot}", own)
        return arrays

    def activations(self, prefix: str, inputs: Tensor) -> dict[str, np.ndarray]:
        """Return what the layers and the module give in evaluation mode, as Keras has it."""
        with self.evaluating(), torch.no_grad(), self.watching(prefix) as seen:
            outputs = self.module(inputs)
        return seen | {f"{prefix}/{self.model['output']}": self._to_keras(self.model["output"], self.outputs(outputs))}

    @contextlib.contextmanager
    def watching(self, prefix: str) -> Iterator[dict[str, np.ndarray]]:
        """Keep what layers give, with their activation function, while it lasts.

        What the function does if it is applied once more is kept beside it, as "<layer>|<function>": a module may have
        it within or not.
        """
        seen: dict[str, np.ndarray] = {}

        def keep(layer: str, output: Any) -> None:
            output = (output[0] if isinstance(output, tuple) else output).detach().clone()
            config = self.described[layer]["config"]
            if self.described[layer]["class"] in ("LSTM", "GRU"):
                if not config["return_sequences"] and output.ndim == 3:
                    output = output[:, -1]
                function = None
            else:
                function = config.get("activation")
            function = function.get("class") if isinstance(function, dict) else function
            if function == "relu":
                output = F.relu(output)
            elif function in ACTIVATIONS:
                seen[f"{prefix}/{layer}|{function}"] = self._to_keras(layer, ACTIVATIONS[function](output))
            seen[f"{prefix}/{layer}"] = self._to_keras(layer, output)

        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output, layer=layer: keep(layer, output))
            for layer, module in self.layers.items()
            if self.described[layer]["recorded"]
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch the module to evaluation mode while it lasts; what a wrong one tracks meanwhile is undone."""
        modes = [(part, part.training) for part in self.module.modules()]
        tracked = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        self.module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
            for buffer, before in tracked:
                buffer.copy_(before)

    def give_draws(self, step: Callable[[], int], rank: int = 0, world_size: int = 1) -> None:
        """Let its Dropout modules leave out what Keras' layers leave out at a step, from now on."""
        for layer, module in self.layers.items():
            if self.described[layer]["class"] == "Dropout":
                rate, shape = self.described[layer]["config"]["rate"], tuple(self.described[layer]["input_shape"])

                def hook(
                    module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, layer: str = layer,
                    rate: float = rate, shape: tuple[int, ...] = shape,
                ) -> Tensor | None:  # fmt: skip
                    if not module.training or rate == 0:
                        return None
                    mask = dropout_mask(layer, rate, step(), (len(inputs[0]) * world_size, *shape))[rank::world_size]
                    turned = self._order(layer, inputs[0].shape[1:]).to_torch(mask)
                    keep = torch.from_numpy(np.ascontiguousarray(turned))
                    return torch.where(keep.to(inputs[0].device), inputs[0] * (1 / (1 - rate)), inputs[0].new_zeros(()))

                module.register_forward_hook(hook)

    def outputs(self, raw: Tensor) -> Tensor:
        """Return what it gives as Keras does: probabilities where it gives logits."""
        return ACTIVATIONS[self.last_activation](raw) if self.logits else raw

    @property
    def last_activation(self) -> str:
        layer = self.described[self.model["output"]]
        function = layer["config"].get("activation")
        return str({"Softmax": "softmax"}.get(layer["class"], function))

    def _find_out_logits(self) -> None:
        """Find out whether it gives logits where Keras gives probabilities: by what it gives for some examples."""
        inputs = self.inputs(self.examples.arrays[0][:200])
        with self.evaluating(), torch.no_grad():
            given = self.module(inputs).double()
        if not isinstance(given, Tensor):
            raise InputError(f"--candidate {self.name}: gives a {type(given).__name__}; expected a tensor")
        outside = bool(((given < 0) | (given > 1)).any())
        if self.last_activation == "softmax":
            self.logits = outside or bool(((given.sum(-1) - 1).abs() > 1e-3).any())
        elif self.last_activation == "sigmoid":
            self.logits = outside

    def inputs(self, array: np.ndarray) -> Tensor:
        """Turn what the Keras model takes, [N, ...], into what the module takes."""
        own = getattr(self.module, "input_from_keras", None)
        if self.model["input_dtype"].startswith("float"):
            array = array.astype(str(self.dtype).removeprefix("torch."))
        elif array.dtype.kind in "iub":
            array = array.astype(np.int64)
        turned = own(array) if own else self.orders[""].to_torch(array)
        tensor = torch.as_tensor(np.ascontiguousarray(turned) if isinstance(turned, np.ndarray) else turned)
        return tensor.to(next(self.module.parameters()).device)

    def data(self, given: TraceInputs) -> "ArrayData":
        """Return the batches of a training."""
        return ArrayData(self, given.order)

    def loaded_inputs(self, array: np.ndarray) -> np.ndarray:
        """Turn what its own loader gives into what the Keras model takes."""
        return self.orders[""].to_keras(array)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example, as the module takes it."""
        return tuple(self.inputs(self.examples.arrays[0][:1]).shape[1:])

    def facts(self) -> dict[str, np.ndarray]:
        """Return `trained/<layer>`, how many of its numbers are trained, `all_trained`, and `shape/<layer>`.

        And `drop/<layer>`, what a Dropout makes of ones (`dropout_facts`).
        """
        arrays = {
            f"trained/{layer}": np.array(sum(p.numel() for p in module.parameters() if p.requires_grad))
            for layer, module in self.layers.items()
        }
        arrays["all_trained"] = np.array(sum(p.numel() for p in self.module.parameters() if p.requires_grad))
        self._find_out_logits()
        shapes = self.activations("shape", self.inputs(self.examples.arrays[0][:2]))
        arrays |= {name: np.array(array.shape[1:]) for name, array in shapes.items() if "|" not in name}
        for layer, module in self.layers.items():
            if self.described[layer]["class"] == "Dropout":
                ones = np.ones(dropout_examples(self.described[layer]["input_shape"]), "float32")
                given = torch.from_numpy(np.ascontiguousarray(self.orders[layer].to_torch(ones)))
                arrays[f"drop/{layer}"] = dropout_facts(copy.deepcopy(module).train()(given).numpy())
        return arrays

    def _to_keras(self, layer: str, tensor: Tensor) -> np.ndarray:
        own = getattr(self.module, "activation_to_keras", None)
        if own is not None:
            return np.array(own(layer, tensor))
        return np.array(self._order(layer, tensor.shape[1:]).to_keras(tensor.detach().cpu().numpy()))

    def _order(self, layer: str, shape: Sequence[int]) -> AxisOrder:
        """Return how the axes of what a layer takes or gives stand: as in Keras where its shape says so.

        Where a port keeps channels last, as torch's LayerNorm and Linear need them, only the values can be wrong.
        """
        order, keras_shape = self.orders[layer], tuple(self.described[layer]["shape"] or ())
        if not order.spatial or tuple(shape) != keras_shape:
            return order
        turned = (keras_shape[-1], *keras_shape[:-1])
        last = type(self.layers.get(layer)) in (nn.LayerNorm, nn.Linear)
        return AxisOrder() if last or turned != keras_shape else order


def _dense(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.to_dense() if tensor.is_sparse else tensor).numpy()


def _folded(optimizer: torch.optim.Optimizer, name: str, rate: float) -> float:
    """Return what torch's momentum is multiplied with to be Keras', which holds the learning rate (and its sign)."""
    if name != "momentum_buffer" or hasattr(optimizer, "keras_slots"):
        return 1.0
    return -rate if isinstance(optimizer, torch.optim.SGD) else rate


class ArrayData(L.LightningDataModule):
    """Serve examples in a given order, on each device its share, as a port takes them.

    Args:
        candidate: that takes them.
        order: from the number of an epoch, from 0, to the rows of its batches.
    """

    def __init__(self, candidate: MappedCandidate, order: Order) -> None:
        super().__init__()
        self.order = order
        dtype = str(candidate.dtype).removeprefix("torch.")
        examples = candidate.examples
        arrays = tuple(examples.arrays)
        self.train = TensorDataset(candidate.inputs(arrays[0]), *(_target(array, dtype) for array in arrays[1:]))
        inputs, *targets = examples.test(dtype)
        self.test = TensorDataset(candidate.inputs(inputs), *(_target(array, dtype) for array in targets))

    def setup(self, stage: str | None = None) -> None:
        pass

    def test_order(self, epoch: int) -> list[np.ndarray]:
        return cut(np.arange(len(self.test)), PREDICTED_AT_ONCE)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.order)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.test_order)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def gather(self, predictions: Sequence[Tensor]) -> np.ndarray:
        """Put what each device predicted for its share of the tests in their order, on every device: [I, ...]."""
        assert self.trainer is not None
        own = torch.cat(list(predictions))
        everyone = own.new_zeros(len(self.test), *own.shape[1:])
        everyone[torch.cat(list(self._batches(self.test, self.test_order).indices))] = own
        return self.trainer.strategy.reduce(everyone, reduce_op="sum").cpu().numpy()

    def _batches(self, dataset: TensorDataset, order: Order) -> Batches:
        assert self.trainer is not None
        return Batches(dataset, order, self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: TensorDataset, order: Order) -> DataLoader:
        batches = self._batches(dataset, order)
        return ResumableLoader(batches, sampler=SharedInOrder(batches))


def _target(array: np.ndarray, dtype: str) -> Tensor:
    """Return classes as int64, all else in the dtype of the training."""
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64 if array.dtype.kind in "iub" else dtype)))

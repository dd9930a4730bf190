"""Between the layers of a Keras model, as its side describes it, and the modules of a port: names, weights, layouts.

Keras keeps channels last, torch channels first. A layer of Keras says by its kind how its weights and what it gives are
turned; where a Flatten came before, features are in the order H, W, C in Keras and C, H, W in torch.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_mnist.errors import InputError
from lit_mnist.porting.rnn import swapped_gates

Layer = Mapping[str, Any]  # as keras_ref/trace/description.py describes it

CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
POOLS = tuple(
    f"{kind}Pooling{rank}D" for kind in ("Max", "Average", "GlobalMax", "GlobalAverage") for rank in (1, 2, 3)
)
SPATIAL = (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE, *POOLS, "UpSampling2D", "ZeroPadding2D", "Cropping2D")
LAST = ("Dense", "LSTM", "GRU", "SimpleRNN", "Embedding", "LayerNormalization")  # act on the last axis, in torch too

# The modules of torch that a kind of layer is ported to; by their class's name or that of one of its bases.
MODULES: dict[str, tuple[str, ...]] = {
    "Dense": ("Linear",),
    **{f"Conv{rank}D": (f"Conv{rank}d",) for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": (f"ConvTranspose{rank}d",) for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": (f"Conv{rank}d",) for rank in (1, 2)},
    **{f"SeparableConv{rank}D": ("Sequential",) for rank in (1, 2)},
    "BatchNormalization": ("_BatchNorm", "KerasBatchNorm"),
    "LayerNormalization": ("LayerNorm",),
    "GroupNormalization": ("GroupNorm",),
    "Embedding": ("Embedding",),
    "PReLU": ("PReLU",),
    "LSTM": ("LSTM",),
    "GRU": ("GRU",),
    "Dropout": ("Dropout",),
}


Turn = Callable[[np.ndarray], np.ndarray]
Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Slot:
    """A weight of Keras, and the tensors of a port that hold it.

    Args:
        key: its name in files.
        paths: names of the tensors in the module.
        join: makes an array in Keras' layout of those of the tensors, which are weights or, if not, what belongs to
            them: gradients, an optimizer's moments.
        split: makes arrays for the tensors of one in Keras' layout.
    """

    key: str
    paths: tuple[str, ...]
    join: Callable[[Arrays, bool], np.ndarray]
    split: Callable[[np.ndarray], Arrays]


@dataclass(frozen=True)
class Order:
    """How the axes of what a layer gives stand in torch, compared with Keras.

    Args:
        spatial: whether the channel, last in Keras, comes first.
        flattened: the shape before a Flatten, as Keras has it, if the features are still in its order.
    """

    spatial: bool = False
    flattened: tuple[int, ...] | None = None

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Turn [N, ...] as Keras has it."""
        if self.flattened is not None and array.shape[1:] == (math.prod(self.flattened),):
            return np.moveaxis(array.reshape(-1, *self.flattened), -1, 1).reshape(len(array), -1)
        return np.moveaxis(array, -1, 1) if self.spatial and array.ndim > 2 else array

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        if self.flattened is not None and array.shape[1:] == (math.prod(self.flattened),):
            channels_first = (self.flattened[-1], *self.flattened[:-1])
            return np.moveaxis(array.reshape(-1, *channels_first), 1, -1).reshape(len(array), -1)
        return np.moveaxis(array, 1, -1) if self.spatial and array.ndim > 2 else array


def orders(model: Mapping[str, Any]) -> dict[str, Order]:
    """Return how what each layer gives stands, by its name; "" is the input."""
    layers = model["layers"]
    found = {"": Order(spatial=len(model["input_shape"]) > 1 and _spatial_below("", layers))}
    for layer in layers:
        given = [found[name] for name in layer["inputs"] if name in found] or [found[""]]
        before, kind, shape = given[0], layer["class"], layer["shape"] or ()
        if kind == "Flatten":
            flattened = tuple(layer["input_shape"]) if before.spatial and len(layer["input_shape"]) > 1 else None
            found[layer["name"]] = Order(flattened=flattened)
        elif kind in SPATIAL:
            found[layer["name"]] = Order(spatial=len(shape) > 1)
        elif kind == "Reshape":
            found[layer["name"]] = Order(spatial=len(shape) > 1 and _spatial_below(layer["name"], layers))
        elif kind in LAST:
            found[layer["name"]] = Order(spatial=before.spatial and kind in ("Dense", "LayerNormalization"))
        else:  # acts on each element, or joins what stands alike
            found[layer["name"]] = before
    return found


def _spatial_below(name: str, layers: Iterable[Layer]) -> bool:
    """Whether what comes of a tensor is next taken by a layer with channels."""
    layers = list(layers)
    for layer in layers:
        if name in (layer["inputs"] or [""]):
            if layer["class"] in SPATIAL:
                return True
            if layer["class"] not in (*LAST, "Flatten", "Reshape") and _spatial_below(layer["name"], layers):
                return True
    return False


def map_layers(
    model: Mapping[str, Any], module: nn.Module, named: Mapping[str, str], candidate: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Find the module of each layer: as named, of the same name, or in the same order among those of its kind.

    Args:
        model: description of the Keras model.
        module: of the port.
        named: from names of layers to paths of modules, as `--layers` says.
        candidate: name of the port, for messages.

    Returns:
        The path of the module of each layer that has one, and how it was found.

    Raises:
        InputError: names the layer without a module, or an unknown one.
    """
    modules = {path: part for path, part in module.named_modules() if path}
    layers = {layer["name"]: layer for layer in model["layers"]}
    paths, how = {}, {}
    for name, path in named.items():
        if name not in layers or path not in modules:
            what, among = (f"layer {name}", layers) if name not in layers else (f"module {path}", modules)
            raise InputError(f"--layers: there is no {what}; there are {', '.join(list(among)[:20])}")
        paths[name], how[name] = path, "--layers"
    for name in layers:
        if name not in paths:
            same = [p for p in modules if p.replace(".", "/").endswith(f"/{name}") or p == name.replace("/", ".")]
            if len(same) == 1:
                paths[name], how[name] = same[0], "the same name"
            elif len(same) > 1 and layers[name]["weights"]:
                raise InputError(
                    f"--candidate {candidate}: layer {name} may be {' or '.join(same)}; say which in --layers FILE, "
                    f"as in {name}: {same[0]}"
                )
    needed = [layer for layer in layers.values() if layer["weights"] or layer["class"] == "Dropout"]
    for kind in dict.fromkeys(layer["class"] for layer in needed):
        left = [layer["name"] for layer in needed if layer["class"] == kind and layer["name"] not in paths]
        free = [path for path, part in modules.items() if _is_a(part, kind) and not _taken(path, paths.values())]
        if left and len(left) != len(free):
            raise InputError(
                f"--candidate {candidate}: layer {left[0]} ({kind}) has no module of its name, and {len(free)} modules "
                f"of its kind ({', '.join(free) or 'none'}) are left for {len(left)} layers; add a line to --layers "
                f"FILE, as in {left[0]}: {free[0] if free else 'path.of.module'}"
            )
        for name, path in zip(left, free, strict=True):
            paths[name], how[name] = path, "the order"
    return {name: paths[name] for name in layers if name in paths}, how


def _taken(path: str, others: Iterable[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _is_a(module: nn.Module, kind: str) -> bool:
    names = {base.__name__ for base in type(module).__mro__}
    if kind in SEPARABLE:
        convolutions = [part for part in module.children() if isinstance(part, nn.Conv1d | nn.Conv2d)]
        return "Sequential" in names and len(convolutions) == 2
    return bool(names & set(MODULES.get(kind, ())))


def slots_of(layer: Layer, path: str, module: nn.Module, before: Order) -> list[Slot]:
    """Return where the weights of a layer are in a module.

    Args:
        layer: described.
        path: of the module.
        module: that the layer is mapped to.
        before: of what the layer is called on.

    Raises:
        InputError: if the kind of layer is not known here, or the module has not its tensors.
    """
    slots = []
    for weight in layer["weights"]:
        name = weight["key"].rpartition("/")[2]
        try:
            tensors, join, split = _turn(layer["class"], name, tuple(weight["shape"]), module, before)
        except KeyError as error:
            raise InputError(
                f"layer {layer['name']} ({layer['class']}): its weight {name} has no known place in a "
                f"{type(module).__name__}; give the candidate from_keras and to_keras (lit_mnist/trace/mapped.py)"
            ) from error
        for tensor in tensors:
            if tensor_at(module, tensor) is None:
                raise InputError(f"layer {layer['name']}: its module {path} has no {tensor} for Keras' {name}")
        paths = tuple(f"{path}.{tensor}" for tensor in tensors)
        slots.append(Slot(weight["key"], paths, join, split))
    return slots


def tensor_at(module: nn.Module, path: str) -> Tensor | None:
    """Return the tensor at a path within a module, if there is one."""
    thing: Any = module
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing if isinstance(thing, Tensor) else None


Turned = tuple[list[str], Callable[[Arrays, bool], np.ndarray], Callable[[np.ndarray], Arrays]]

VECTORS = {
    "BatchNormalization": {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    },
    "LayerNormalization": {"gamma": "weight", "beta": "bias"},
    "GroupNormalization": {"gamma": "weight", "beta": "bias"},
    **{kind: {"bias": "bias"} for kind in ("Dense", *CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE)},
}


def _turn(kind: str, name: str, shape: tuple[int, ...], module: nn.Module, before: Order) -> Turned:
    """Return the tensors of a weight, and how arrays are turned to Keras' layout and back; KeyError if unknown."""
    if kind == "Dense" and name == "kernel":
        return _one("weight", lambda a: before.to_keras(a).T, lambda a: before.to_torch(np.ascontiguousarray(a.T)))
    if kind in (*CONVOLUTIONS, *TRANSPOSED) and name == "kernel":  # (*k)IO and OI(*k), or (*k)OI and IO(*k)
        return _one("weight", *_KERNEL)
    if kind in DEPTHWISE and name in ("kernel", "depthwise_kernel"):
        return _one("weight", *_depthwise(shape))
    if kind in SEPARABLE:
        first, second = (path for path, part in module.named_children() if isinstance(part, nn.Conv1d | nn.Conv2d))
        if name == "depthwise_kernel":
            return _one(f"{first}.weight", *_depthwise(shape))
        return _one(f"{second}.weight", *_KERNEL) if name == "pointwise_kernel" else _one(f"{second}.bias")
    if kind in ("LSTM", "GRU"):
        return _recurrent(kind, name, shape, module)
    if kind == "PReLU":
        return _one("weight", lambda a: a.reshape(shape), lambda a: a.reshape(-1))
    if kind == "Embedding":
        return _one("weight")
    tensor = VECTORS[kind][name]
    if kind.endswith("Normalization") and before.flattened is not None:
        return _one(tensor, lambda a: before.to_keras(a[None])[0], lambda a: before.to_torch(a[None])[0])
    return _one(tensor)


def _one(tensor: str, to_keras: Turn = lambda a: a, from_keras: Turn = lambda a: a) -> Turned:
    return [tensor], lambda arrays, weights: to_keras(arrays[0]), lambda array: [from_keras(array)]


_KERNEL = (lambda a: np.moveaxis(a, (0, 1), (-1, -2)), lambda a: np.moveaxis(a, (-1, -2), (0, 1)))


def _depthwise(shape: tuple[int, ...]) -> tuple[Turn, Turn]:
    *k, channels, multiplier = shape  # (*k)IM, in torch (IM)1(*k)
    return (
        lambda a: np.moveaxis(a.reshape(channels, multiplier, *k), (0, 1), (-2, -1)),
        lambda a: np.moveaxis(a, (-2, -1), (0, 1)).reshape(channels * multiplier, 1, *k),
    )


def _recurrent(kind: str, name: str, shape: tuple[int, ...], module: nn.Module) -> Turned:
    """Gates: Keras' LSTM has i, f, c, o and torch's i, f, g, o, the same; Keras' GRU z, r, h and torch's r, z, n.

    torch's LSTM has two biases where Keras' has one: their sum. Keras' GRU has two, as torch's.
    """
    swap: Turn = swapped_gates if kind == "GRU" else lambda a: a
    if name in ("kernel", "recurrent_kernel"):
        tensor = "weight_ih_l0" if name == "kernel" else "weight_hh_l0"
        return _one(tensor, lambda a: swap(a).T, lambda a: swap(np.ascontiguousarray(a.T)))
    biases = ["bias_ih_l0", "bias_hh_l0"]
    if kind == "GRU":
        if len(shape) != 2:
            raise KeyError(name)  # reset_after=False, which torch's GRU does not compute
        return biases, lambda arrays, weights: np.stack([swap(a) for a in arrays]), lambda a: [swap(b) for b in a]
    if tensor_at(module, biases[1]) is None:
        return _one(biases[0])
    return (
        biases,
        lambda arrays, weights: arrays[0] + arrays[1] if weights else arrays[0],
        lambda array: [array, np.zeros_like(array)],
    )

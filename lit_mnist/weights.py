"""Weights in files have Keras' layout; in the model, torch's. This is the one place where the two meet.

Arrays in files are keyed `conv/kernel` [3, 3, 1, 6], `conv/bias` [6], `hidden/kernel` [1176, 128], `hidden/bias`
[128], `output/kernel` [128, 10], `output/bias` [10]. What holds for weights holds for their gradients and for the
moments of an optimizer, too.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lit_mnist.layout import WEIGHTS


def to_keras(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Turn tensors named as in a `state_dict` into arrays in Keras' layout.

    Args:
        tensors: `conv.weight` [6, 1, 3, 3], `conv.bias`, ..., with any prefix (`model.conv.weight`).

    Returns:
        Arrays of their own, keyed as in `WEIGHTS`, in the dtype of the tensors.
    """
    arrays = {}
    for name, tensor in tensors.items():
        layer, kind = name.split(".")[-2:]
        array = tensor.detach().cpu().numpy()
        if kind == "weight":
            kind = "kernel"
            if layer == "conv":
                array = array.transpose(2, 3, 1, 0)  # OIHW to HWIO
            elif layer == "hidden":
                array = array.reshape(128, 6, 14, 14).transpose(2, 3, 1, 0).reshape(1176, 128)  # O(CHW) to (HWC)O
            else:
                array = array.transpose(1, 0)  # OI to IO
        arrays[f"{layer}/{kind}"] = array.copy()
    return arrays


def from_keras(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Turn arrays in Keras' layout into tensors named `conv.weight`, `conv.bias`, ...: the inverse of `to_keras`.

    Raises:
        ValueError: if a key is missing or unknown, or an array has another shape than `WEIGHTS` says.
    """
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    if shapes != WEIGHTS:
        wrong = sorted(key for key in shapes.keys() | WEIGHTS.keys() if shapes.get(key) != WEIGHTS.get(key))
        raise ValueError(f"weights: {wrong[0]} is {shapes.get(wrong[0])}, expected {WEIGHTS.get(wrong[0])}")
    tensors = {}
    for key, array in arrays.items():
        layer, kind = key.split("/")
        if kind == "kernel":
            kind = "weight"
            if layer == "conv":
                array = array.transpose(3, 2, 0, 1)  # HWIO to OIHW
            elif layer == "hidden":
                array = array.reshape(14, 14, 6, 128).transpose(3, 2, 0, 1).reshape(128, 1176)  # (HWC)O to O(CHW)
            else:
                array = array.transpose(1, 0)  # IO to OI
        tensors[f"{layer}.{kind}"] = torch.from_numpy(array.copy())
    return tensors


def activation_to_keras(tensor: Tensor) -> np.ndarray:
    """Turn what a layer gives, [N, C, H, W] or, flattened, [N, CHW], into Keras' order: [N, H, W, C] or [N, HWC]."""
    # A candidate may compute in bfloat16, which NumPy does not have.
    array = tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32)).numpy()
    if array.ndim == 4:
        return array.transpose(0, 2, 3, 1).copy()
    if array.shape[1:] == (1176,):
        return array.reshape(-1, 6, 14, 14).transpose(0, 2, 3, 1).reshape(-1, 1176)
    return array.copy()

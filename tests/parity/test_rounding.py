"""Which constants Keras rounds to float32 in a float64 model, and that `unrounded` keeps the bits of all of them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from porting_cases import draw
from torch import Tensor

from lit_mnist import KerasAdam
from lit_mnist.porting import KerasSGD

pytestmark = pytest.mark.slow

X, IMAGES = torch.from_numpy(draw(6, 4)), torch.from_numpy(draw(2, 6, 6, 4)).permute(0, 3, 1, 2)
P = torch.from_numpy(draw(6, 4, seed=1)).sigmoid()
T = torch.from_numpy(draw(6, 4, seed=2) > 0).double()


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def attention(x: Tensor) -> Tensor:
    """Two heads of three, all of whose kernels are full of ones."""
    head = x.sum(dim=-1, keepdim=True).expand(*x.shape[:-1], 3)
    return 2 * F.scaled_dot_product_attention(head, head, head).sum(dim=-1, keepdim=True).expand_as(x)


def trained(weight_decay: float = 0.0, clipnorm: float | None = None, momentum: float = 0.0) -> Tensor:
    parameter = torch.nn.Parameter(torch.from_numpy(draw(3, 2)))
    optimizer = KerasSGD([parameter], lr=0.03, momentum=momentum)
    for step in range(8):
        parameter.grad = torch.from_numpy(draw(3, 2, seed=10 + step))
        if clipnorm is not None:
            parameter.grad *= clipnorm / max(parameter.grad.norm().item(), clipnorm)
        with torch.no_grad():
            parameter.sub_(parameter * weight_decay * 0.03)
        optimizer.step()
    return parameter.detach()


def adam(weight_decay: float = 0.0) -> Tensor:
    w = torch.nn.Parameter(torch.from_numpy(draw(3, 2)))
    optimizer = KerasAdam([w], lr=0.03, weight_decay=weight_decay, float32_constants=False)
    for step in range(8):
        w.grad = torch.from_numpy(draw(3, 2, seed=10 + step))
        optimizer.step()
    return w.detach()


# What every bit gives, and whether Keras as it is gives it.
CASES: dict[str, tuple[bool, Callable[[], Tensor]]] = {
    "gelu": (False, lambda: F.gelu(X)),
    "gelu tanh": (False, lambda: F.gelu(X, approximate="tanh")),
    "selu": (True, lambda: F.selu(X)),
    "hard_sigmoid": (True, lambda: F.hardsigmoid(X)),
    "elu": (True, lambda: F.elu(X, 0.7)),
    "leaky_relu": (False, lambda: F.leaky_relu(X, 0.3)),
    "relu": (False, lambda: torch.where(X >= 0.05, X, 0.1 * (X - 0.05)).clamp(max=0.7)),
    "layer normalisation": (True, lambda: F.layer_norm(X, (4,), eps=1e-3)),
    "batch normalisation": (True, lambda: F.batch_norm(X, None, None, training=True, eps=1e-3)),
    "group normalisation": (True, lambda: channels_last(F.group_norm(IMAGES, 2, eps=1e-3))),
    "rescaling": (False, lambda: X * (1 / 255) + 0.1),
    "normalization": (False, lambda: (X - 0.3) / 0.7**0.5),
    "attention": (False, lambda: attention(X[None])),
    "constant": (False, lambda: (0.3 * X).sum(dim=1, keepdim=True).expand(-1, 2)),
    "l1": (False, lambda: 0.003 * X.abs().sum()),
    "l2": (False, lambda: 0.003 * X.square().sum()),
    "huber": (True, lambda: F.huber_loss(P, X, delta=0.7)),
    "log_cosh": (False, lambda: (P - X).cosh().log().mean()),
    "binary crossentropy": (True, lambda: F.binary_cross_entropy(P, T * 0.9 + 0.05)),
    "clipped probabilities": (True, lambda: F.binary_cross_entropy((1 - T).clamp(1e-7, 1 - 1e-7), T)),
    "sgd": (True, trained),
    "sgd momentum": (False, lambda: trained(momentum=0.9)),
    "sgd weight decay": (False, lambda: trained(weight_decay=0.003)),
    "sgd clipnorm": (True, lambda: trained(clipnorm=0.3)),
    "adam": (False, adam),
    "adamw": (False, lambda: adam(weight_decay=0.004)),
}


@pytest.fixture(scope="module", params=["as_it_is", "unrounded"])
def keras(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, np.ndarray]]:
    output = tmp_path_factory.mktemp("rounding") / "out.npz"
    script = Path(__file__).with_name("keras_rounding.py")
    subprocess.run([sys.executable, script, request.param, output], check=True, timeout=300, capture_output=True)
    return request.param, dict(np.load(output))


def off(theirs: np.ndarray, ours: Tensor) -> float:
    assert theirs.shape == ours.shape
    return float(np.abs(theirs - ours.numpy()).max() / max(1, np.abs(theirs).max()))


def test_unrounded_constants_keep_every_bit_and_the_others_are_known(keras: tuple[str, dict[str, np.ndarray]]) -> None:
    rounding, theirs = keras
    found = {name: off(theirs[name], ours()) for name, (_, ours) in CASES.items()}
    exact = {name: rounding == "unrounded" or kept for name, (kept, _) in CASES.items()}
    assert {name: error < 1e-14 for name, error in found.items()} == exact, found
    # What is rounded is off by a rounding to float32, Adam by the same of 1 - 0.999.
    assert all(1e-12 < error < 1e-5 for name, error in found.items() if not exact[name]), found


def test_interpolation_is_in_float32_whatever_the_model_is(keras: tuple[str, dict[str, np.ndarray]]) -> None:
    ours = channels_last(F.interpolate(IMAGES, size=(4, 5), mode="bilinear"))
    assert 1e-9 < off(keras[1]["resizing"], ours) < 1e-5

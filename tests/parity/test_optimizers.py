"""KerasAdam and KerasAdamW with every argument that Keras' have, against Keras, in float64 and float32."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_mnist import KerasAdam, KerasAdamW

STEPS = 12
# By Keras' names. The gradients have norms of about 4 and 2, and elements up to about 3.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "betas": {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3, "learning_rate": 0.02},
    "amsgrad": {"amsgrad": True, "beta_2": 0.9},  # so that v falls
    "weight_decay": {"weight_decay": 0.1},
    "adamw": {"class": "AdamW"},
    "excluded": {"class": "AdamW", "weight_decay": 0.1, "excluded": ["bias"]},
    "clipnorm": {"clipnorm": 1.0},
    "clipvalue": {"clipvalue": 0.5},
    "global_clipnorm": {"global_clipnorm": 1.0},
    "use_ema": {"use_ema": True},
    "overwritten": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 5},
    "all": {"class": "AdamW", "amsgrad": True, "global_clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 4},
}
# The largest difference from Keras in units of the last place of one, for weights of at most one. Measured: 0.25 in
# float64, 1.5 in float32. The smallest of the mistakes below is off by 3,200 of them in float32.
ULPS = 4


def given(dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    arrays = {name: rng.uniform(-0.5, 0.5, shape) for name, shape in shapes.items()}
    # Of many sizes: v of amsgrad has to fall, and clipping to do nothing now and then.
    sizes = 10 ** rng.uniform(-2, 0.2, STEPS)
    for name, shape in shapes.items():
        arrays[f"{name} gradients"] = rng.normal(size=(STEPS, *shape)) * sizes.reshape(-1, *[1] * len(shape))
    return {name: array.astype(dtype) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """What Keras makes of all cases, by precision."""
    directory = tmp_path_factory.mktemp("optimizers")
    for dtype in ("float64", "float32"):
        np.savez(directory / f"in-{dtype}.npz", cases=json.dumps(CASES), **given(dtype))
    script = Path(__file__).with_name("keras_optimizers.py")
    subprocess.run([sys.executable, script, directory], check=True, timeout=300)
    return {dtype: dict(np.load(directory / f"out-{dtype}.npz")) for dtype in ("float64", "float32")}


@pytest.fixture(params=["float64", "float32"])
def keras(
    request: pytest.FixtureRequest, theirs: dict[str, dict[str, np.ndarray]]
) -> tuple[str, dict[str, np.ndarray]]:
    return request.param, theirs[request.param]


def in_torch(arguments: dict[str, Any], parameters: Any) -> KerasAdam:
    arguments = dict(arguments)
    optimizer_class = {"Adam": KerasAdam, "AdamW": KerasAdamW}[arguments.pop("class", "Adam")]
    excluded = arguments.pop("excluded", [])
    names = {"learning_rate": "lr", "epsilon": "eps"}
    betas = (arguments.pop("beta_1", 0.9), arguments.pop("beta_2", 0.999))
    renamed = {names.get(name, name): value for name, value in arguments.items()}
    optimizer = optimizer_class(parameters, betas=betas, **renamed)
    optimizer.exclude_from_weight_decay(var_names=excluded)
    return optimizer


def largest_difference(case: str, arguments: dict[str, Any], keras: tuple[str, dict[str, np.ndarray]]) -> float:
    """Return how far our weights are from Keras' at any step, in units of the last place of one."""
    dtype, theirs = keras
    arrays = given(dtype)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(arrays[name].copy())) for name in ("kernel", "bias")}
    optimizer = in_torch(arguments, parameters.items())
    worst = 0.0
    for step in [*range(STEPS), "final"]:
        if step == "final":
            optimizer.overwrite_with_averages()
        else:
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(arrays[f"{name} gradients"][step])
            optimizer.step()
        for name, parameter in parameters.items():
            worst = max(worst, np.abs(parameter.detach().numpy() - theirs[f"{case}/{step}/{name}"]).max())
    return worst / np.finfo(dtype).eps


@pytest.mark.parametrize("case", CASES)
def test_every_argument_does_what_it_does_in_keras(case: str, keras: tuple[str, dict[str, np.ndarray]]) -> None:
    assert largest_difference(case, CASES[case], keras) <= ULPS


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("weight_decay", {}),
        ("excluded", {"class": "AdamW", "weight_decay": 0.1}),
        ("clipnorm", {"global_clipnorm": 1.0}),
        ("global_clipnorm", {"clipnorm": 1.0}),
        ("clipvalue", {"clipvalue": 0.6}),
        ("amsgrad", {"beta_2": 0.9}),
        ("use_ema", {"use_ema": True, "ema_momentum": 0.98}),
        ("overwritten", {"use_ema": True, "ema_momentum": 0.8}),
    ],
)
def test_another_argument_is_noticed(
    case: str, arguments: dict[str, Any], keras: tuple[str, dict[str, np.ndarray]]
) -> None:
    assert largest_difference(case, arguments, keras) > 100 * ULPS

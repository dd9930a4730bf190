"""The ports of tests/models against their originals: 300 steps from the same weights, on the same batches."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import porting_cases as cases
import pytest
import torch
import yaml
from conftest import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_mnist.porting import KerasLSTM

Arrays = dict[str, np.ndarray]

PORTS = {"mnist_convnet": "LitConvnet", "bn_stride": "LitBnStride", "roman_lstm": "LitRoman"}
MUTANTS = {
    f"{model}:{name}": value
    for model, port in PORTS.items()
    for name, value in vars(importlib.import_module(f"models.{model}.mutants")).items()
    if inspect.isclass(value) and issubclass(value, L.LightningModule) and name != port
}
SCRIPT = Path(__file__).with_name("keras_porting.py")
# Of a loss at any step, of a weight after 300. Measured: 2.2e-13 at most, in the moving statistics of bn_stride.
TOLERANCE = 1e-12


class Recorded(nn.Module):
    """Dropout that keeps what Keras kept."""

    def __init__(self, rate: float, masks: np.ndarray, channels_last: tuple[int, ...]) -> None:
        super().__init__()
        self.rate, self.masks, self.channels_last, self.step = rate, masks, channels_last, 0

    def forward(self, x: Tensor) -> Tensor:
        kept = np.unpackbits(self.masks[self.step], axis=1, count=x.shape[1])
        kept = np.moveaxis(kept.reshape(-1, *self.channels_last), -1, 1).reshape(x.shape)
        self.step += 1
        return x * torch.from_numpy(kept) / (1 - self.rate)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].item())


def port_of(model: str) -> L.LightningModule:
    return getattr(importlib.import_module(f"models.{model}.port"), PORTS[model])().double()


@torch.no_grad()
def load(module: L.LightningModule, model: str, arrays: Arrays, when: str) -> None:
    """Set the weights to Keras', by the names of its layers."""
    names = cases.MODELS[model][1]
    by_layer: dict[str, Arrays] = {}
    for key, array in arrays.items():
        if key.startswith(f"{when}/"):
            layer, weight = key.split("/")[1:]
            by_layer.setdefault(names.get(layer, layer), {})[weight] = array
    in_torch = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    in_torch |= {"kernel": "weight", "embeddings": "weight"}
    for name, weights in by_layer.items():
        layer = module.get_submodule(name)
        if isinstance(layer, KerasLSTM):
            layer.from_keras(**weights)
            continue
        for weight, array in weights.items():
            if weight == "kernel" and array.shape == (1600, 10):  # behind Flatten: H, W, C and C, H, W
                array = array.reshape(5, 5, 64, 10).transpose(2, 0, 1, 3).reshape(1600, 10)
            if weight == "kernel":
                array = np.moveaxis(array, (-1, -2), (0, 1))
            tensor = getattr(layer, in_torch.get(weight, weight))
            assert tensor.shape == array.shape
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def batches_of(model: str) -> DataLoader:
    (x, y), _ = importlib.import_module(f"models.{model}.data").load()
    if x.ndim == 4:
        x = np.moveaxis(x, -1, 1).astype("float64")
    batches = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in cases.batches(model, len(x))]
    return DataLoader(batches, batch_size=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "rounding"), [(model, rounding) for model in PORTS for rounding in cases.ROUNDINGS[model]]
)
def test_the_port_trains_as_the_original_for_300_steps(model: str, rounding: str, tmp_path: Path) -> None:
    output = tmp_path / "theirs.npz"
    subprocess.run([sys.executable, SCRIPT, model, rounding, output], check=True, timeout=900, capture_output=True)
    theirs = dict(np.load(output))
    module = port_of(model)
    load(module, model, theirs, "start")
    if "masks" in theirs:
        channels_last = (5, 5, 64) if model == "mnist_convnet" else (16,)
        module.dropout = Recorded(module.dropout.p, theirs["masks"], channels_last)
    seen = Losses()
    trainer = make_trainer(seen, max_epochs=1)
    trainer.fit(module, batches_of(model))
    assert len(seen.losses) == cases.MODEL_STEPS
    assert np.abs(seen.rates - theirs["rate"]).max() <= TOLERANCE
    assert np.abs(seen.losses - theirs["loss"]).max() <= TOLERANCE
    expected = port_of(model)
    load(expected, model, theirs, "end")
    for name, tensor in expected.state_dict().items():
        assert (module.state_dict()[name] - tensor).abs().max() <= TOLERANCE, name
    assert theirs["loss"][-10:].mean() < 0.8 * theirs["loss"][:10].mean()


def three_epochs(module: L.LightningModule, model: str, start: dict[str, Tensor]) -> list[Tensor]:
    """Return what shows after three short epochs from given weights: what was logged, predictions, state, weights."""
    module.load_state_dict(start, strict=False)
    batches = [tuple(tensor[:20] for tensor in batch) for batch in batches_of(model).dataset[:3]]
    torch.manual_seed(1)  # for dropout
    trainer = make_trainer(max_epochs=3)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    torch.manual_seed(1)
    logged = [value for name, value in sorted(trainer.callback_metrics.items()) if name.startswith("train_")]
    with torch.no_grad():
        predictions = module.eval()(batches[0][0])
    return [*logged, predictions, *(module.state_dict()[name] for name in start)]


def differs(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((one.double() - other.double()).abs().max()) for one, other in zip(ours, theirs, strict=True))


def start_of(module: L.LightningModule) -> list[float]:
    """Return what a start distribution shows by: mean and standard deviation of each tensor."""
    return [statistic for p in module.parameters() for statistic in (p.mean().item(), p.std(correction=0).item())]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_wrong_port_differs_from_the_right_one(mutant: str) -> None:
    """In training or evaluation by far more than a rounding, or else in its start weights."""
    model, mutant_class = mutant.partition(":")[0], MUTANTS[mutant]
    start = port_of(model).state_dict()
    right, same = (three_epochs(port_of(model), model, start) for _ in range(2))
    assert differs(right, same) == 0
    wrong = three_epochs(mutant_class().double(), model, start)
    if differs(right, wrong) < 1e-9:
        starts = [start_of(each) for each in (port_of(model), port_of(model), mutant_class().double())]
        chance = np.abs(np.subtract(starts[0], starts[1])).max()
        assert np.abs(np.subtract(starts[0], starts[2])).max() > 3 * chance


def test_every_wrong_port_is_explained_and_every_explanation_is_of_one() -> None:
    explained = yaml.safe_load((Path(__file__).parent.parent / "models" / "mutants.yaml").read_text())
    assert [f"{model}:{name}" for model in explained for name in explained[model]] == list(MUTANTS)
    for entry in (entry for of_model in explained.values() for entry in of_model.values()):
        assert entry.keys() == {"rung", "named", "mistake", "right"}

"""The classes of `lit_mnist.porting` against Keras, in float64."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import porting_cases as cases
import pytest
import scipy.stats
import torch
from torch import nn

from lit_mnist import KerasAdam, KerasAdamW, porting

Arrays = dict[str, np.ndarray]

# What is allowed between ours and Keras' with constants that keep their bits. Measured: 1.1e-14 at most.
TOLERANCE = 1e-12
CLASSES: dict[str, Any] = {
    "SGD": porting.KerasSGD,
    "RMSprop": porting.KerasRMSprop,
    "Adagrad": porting.KerasAdagrad,
    "Adam": KerasAdam,
    "AdamW": KerasAdamW,
}
OF_ADAM = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "velocity_hat": "max_exp_avg_sq"}
IN_TORCH = {"learning_rate": "lr", "epsilon": "eps"}
SCRIPT = Path(__file__).with_name("keras_porting.py")


def ask_keras(rounding: str, directory: Path) -> Arrays:
    output = directory / f"{rounding}.npz"
    subprocess.run([sys.executable, SCRIPT, rounding, output], check=True, timeout=900, capture_output=True)
    return dict(np.load(output))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Keras whose constants keep their bits."""
    return ask_keras("unrounded", tmp_path_factory.mktemp("porting"))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Keras as it is."""
    return ask_keras("as_it_is", tmp_path_factory.mktemp("porting"))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference of any element, relative to Keras' value where that is more than one."""
    ours, theirs = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    return float(np.abs((ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def channels_first(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 1)


def optimized(case: str, kind: str, keras: Arrays, **changed: Any) -> float:
    """Return how far our weights and slots are from Keras' at any step; without a schedule, with one, or of rows."""
    name, arguments = cases.OPTIMIZERS[case]
    renamed = {IN_TORCH.get(key, key): value for key, value in (arguments | changed).items()}
    parameter = nn.Parameter(tensor(cases.draw(*((5, 2) if kind == "rows" else (3, 4)))))
    optimizer_class = CLASSES[name]
    if name in ("Adam", "AdamW"):
        renamed.setdefault("float32_constants", False)
    optimizer = optimizer_class([parameter], **renamed)
    scheduler = porting.ExponentialDecay(optimizer, 10, 0.7) if kind == "True" else None
    worst = 0.0
    for step, gradient in enumerate(cases.gradients()):
        if kind == "rows":
            tokens, rows = cases.rows(step)
            parameter.grad = torch.sparse_coo_tensor(tensor(tokens)[None], tensor(rows), (5, 2), check_invariants=True)
        else:
            parameter.grad = tensor(gradient)
        optimizer.step()
        if scheduler:
            scheduler.step()
        worst = max(worst, difference(parameter, keras[f"optimizers/{case}/{kind}/{step}"]))
    prefix = f"optimizers/{case}/{kind}/"
    for key, slot in keras.items():
        if key.startswith(prefix) and not key.removeprefix(prefix).isdigit():
            slots = getattr(optimizer, "keras_slots", OF_ADAM)
            (own,) = (own for slot, own in slots.items() if key.endswith(f"_{slot}"))
            state = optimizer.state[parameter]
            worst = max(worst, difference(state[own], slot) if own in state else np.inf)
    return worst


@pytest.mark.parametrize("kind", ["False", "True", "rows"])
@pytest.mark.parametrize("case", cases.OPTIMIZERS)
def test_every_optimizer_takes_the_steps_of_keras(case: str, kind: str, theirs: Arrays) -> None:
    assert optimized(case, kind, theirs) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "kind", "changed"),
    [
        ("momentum", "False", {"momentum": 0.9001}),
        ("nesterov", "False", {"nesterov": False}),
        ("rmsprop", "False", {"epsilon": 1.1e-7}),
        ("rmsprop", "False", {"rho": 0.9001}),
        ("rmsprop centered", "False", {"centered": False}),
        ("rmsprop momentum", "False", {"momentum": 0.9001}),
        ("adam", "rows", {"epsilon": 1.1e-7}),
        ("adam", "rows", {"float32_constants": True}),
        ("adam", "False", {"float32_constants": True}),
        ("adamw", "False", {"weight_decay": 0.1001}),
        ("adagrad", "False", {"initial_accumulator_value": 0.1001}),
        ("adagrad", "False", {"epsilon": 1.1e-7}),
    ],
)
def test_another_argument_is_noticed(case: str, kind: str, changed: dict[str, Any], theirs: Arrays) -> None:
    assert optimized(case, kind, theirs, **changed) > 1000 * TOLERANCE


@pytest.mark.parametrize("case", ["plain", "regularised"])
def test_keras_squares_each_row_of_an_embedding_by_itself_unless_it_is_regularised(case: str, theirs: Arrays) -> None:
    """In its own `fit`, not only where it is handed rows."""
    found = {}
    for embedding_class in (porting.KerasEmbedding, nn.Embedding):
        embedding, output = embedding_class(5, 2).double(), nn.Linear(2, 1).double()
        with torch.no_grad():
            embedding.weight.copy_(tensor(cases.draw(5, 2)))
            output.weight.copy_(tensor(cases.draw(2, 1).T))
            output.bias.copy_(tensor(cases.draw(1)))
        optimizer = porting.KerasRMSprop(embedding.parameters(), lr=0.1)
        predictions = output(embedding(tensor(cases.TOKENS)).mean(dim=1))
        loss = nn.functional.mse_loss(predictions, porting.match_rank(tensor(cases.draw(3)), predictions))
        if case == "regularised":
            loss = loss + 0.5 * embedding.weight.square().sum()
        loss.backward()
        optimizer.step()
        square = optimizer.state[embedding.weight]["square_avg"]
        found[embedding_class] = difference(square, theirs[f"embedding/{case}"])
    if case == "regularised":  # then torch's gradient is dense, too, whichever class it is of
        assert max(found.values()) <= TOLERANCE
    else:
        assert found[porting.KerasEmbedding] <= TOLERANCE
        assert found[nn.Embedding] > 1e-3


@pytest.mark.parametrize("case", cases.SCHEDULES)
def test_every_schedule_gives_the_learning_rates_of_keras(case: str, theirs: Arrays) -> None:
    name, arguments = cases.SCHEDULES[case]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cases.INITIAL_RATE)
    scheduler = getattr(porting, name)(optimizer, **arguments)
    rates = []
    for _ in range(cases.STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert difference(np.array(rates), theirs[f"schedules/{case}"]) <= TOLERANCE


def batch_norm_of(case: str, **changed: Any) -> porting.KerasBatchNorm:
    arguments = {IN_TORCH.get(key, key): value for key, value in (cases.BATCH_NORMS[case][1] | changed).items()}
    layer = porting.KerasBatchNorm(3, **arguments).double()
    weights = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    with torch.no_grad():
        for i, weight in enumerate(weight for weight in weights if weight is not None):
            weight.copy_(tensor(cases.draw(3, seed=i) ** 2))
    return layer


def normalised(case: str, layer: nn.Module, theirs: Arrays) -> float:
    """Return how far a layer is from Keras': outputs, gradients, moving statistics of five batches; evaluation."""
    shape = cases.BATCH_NORMS[case][0]
    worst = 0.0
    for step in range(5):
        x = tensor(channels_first(cases.draw(*shape, seed=step) * 3 + 1)).requires_grad_()
        layer.zero_grad()
        y = layer(x)
        (y * tensor(channels_first(cases.draw(*shape, seed=50 + step)))).sum().backward()
        prefix = f"batch_norms/{case}/{step}"
        pairs = [(y, channels_first(theirs[f"{prefix}/y"])), (x.grad, channels_first(theirs[f"{prefix}/x"]))]
        pairs += [(layer.running_mean, theirs[f"{prefix}/moving_mean"])]
        pairs += [(layer.running_var, theirs[f"{prefix}/moving_variance"])]
        for ours, name in ((layer.weight, "gamma"), (layer.bias, "beta")):
            pairs += [(ours.grad, theirs[f"{prefix}/{name}"])] if ours is not None else []
        worst = max(worst, *(difference(*pair) for pair in pairs))
    evaluated = layer.eval()(tensor(channels_first(cases.draw(*shape, seed=9))))
    return max(worst, difference(evaluated, channels_first(theirs[f"batch_norms/{case}/evaluated"])))


@pytest.mark.parametrize("case", cases.BATCH_NORMS)
def test_batch_norm_normalises_tracks_and_differentiates_as_keras(case: str, theirs: Arrays) -> None:
    assert normalised(case, batch_norm_of(case), theirs) <= TOLERANCE


def test_another_batch_norm_is_noticed(theirs: Arrays) -> None:
    unbiased = nn.BatchNorm2d(3, eps=1e-2, momentum=0.1).double()
    unbiased.load_state_dict(batch_norm_of("images").state_dict(), strict=False)
    for layer in (unbiased, batch_norm_of("images", momentum=0.1), batch_norm_of("images", epsilon=1e-5)):
        assert normalised("images", layer, theirs) > 1e-4


def padded_layer(case: str, theirs: Arrays) -> nn.Module:
    name, lengths, kernel, stride, dilation = cases.PADDED[case]
    rank = f"{len(lengths)}d"
    if not name.startswith("Conv"):
        return getattr(porting, f"Same{name[:3]}Pool{rank}".replace("Ave", "Avg"))(kernel, stride)
    layer = getattr(porting, f"SameConv{rank}")(2, 3, kernel, stride, dilation=dilation).double()
    with torch.no_grad():
        layer.weight.copy_(tensor(np.moveaxis(theirs[f"padded/{case}/kernel"], (-1, -2), (0, 1))))
        layer.bias.copy_(tensor(theirs[f"padded/{case}/bias"]))
    return layer


@pytest.mark.parametrize("case", cases.PADDED)
def test_same_padding_is_as_uneven_as_that_of_keras(case: str, theirs: Arrays) -> None:
    x = tensor(channels_first(cases.draw(2, *cases.PADDED[case][1], 2) - 2))
    ours = padded_layer(case, theirs)(x)
    assert difference(ours, channels_first(theirs[f"padded/{case}"])) <= TOLERANCE


@pytest.mark.parametrize("rank", ["1d", "2d"])
def test_padding_is_a_layer_too(rank: str) -> None:
    pad, conv = getattr(porting, f"SamePad{rank}"), getattr(nn, f"Conv{rank}")
    layer = conv(2, 3, 3, 2)
    same = getattr(porting, f"SameConv{rank}")(2, 3, 3, 2)
    same.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, *[8] * int(rank[0]))
    assert torch.equal(nn.Sequential(pad(3, 2), layer)(x), same(x))
    with pytest.raises(TypeError, match="has no padding"):
        type(same)(2, 3, 3, padding=1)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_recurrent_layers_compute_and_differentiate_as_keras(name: str, theirs: Arrays) -> None:
    layer = {"LSTM": porting.KerasLSTM, "GRU": porting.KerasGRU}[name](2, 4).double()
    weights, gradients = ([theirs[f"recurrent/{name}/{i}{end}"] for i in range(3)] for end in ("", "/gradient"))
    layer.from_keras(*weights)
    assert all(np.array_equal(ours, weight) for ours, weight in zip(layer.to_keras(), weights, strict=True))
    outputs, _ = layer(tensor(cases.draw(3, 6, 2)))
    assert difference(outputs, theirs[f"recurrent/{name}"]) <= TOLERANCE
    (outputs * tensor(cases.draw(3, 6, 4, seed=1))).sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    for ours, gradient in zip(layer.to_keras(), gradients, strict=True):
        assert difference(ours, gradient) <= TOLERANCE
    with pytest.raises(ValueError, match="weight_ih_l0 is"):
        layer.from_keras(weights[1], *weights[1:])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_recurrent_layers_start_as_keras_does(name: str, theirs: Arrays) -> None:
    torch.manual_seed(0)
    layer = {"LSTM": porting.KerasLSTM, "GRU": porting.KerasGRU}[name](30, 40)
    kernel, recurrent, bias = layer.to_keras()
    theirs_kernel, theirs_recurrent, theirs_bias = (theirs[f"recurrent/{name}/{i}/start"] for i in range(3))
    assert alike(kernel, theirs_kernel)
    for orthogonal in (recurrent, theirs_recurrent):
        np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(40), atol=1e-5)
    assert alike(recurrent, theirs_recurrent)
    assert np.array_equal(bias, theirs_bias)


def alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Say whether two samples may be of one distribution: of 1,000 pairs that are, 1 is said not to be."""
    assert ours.shape == theirs.shape
    # Ranks alone would pass over ends that nobody else reaches.
    ends = np.abs(ours).max() / np.abs(theirs).max()
    return bool(scipy.stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-3 and 0.8 < ends < 1.25)


FILLERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "GlorotUniform": porting.glorot_uniform_,
    "GlorotNormal": porting.glorot_normal_,
    "HeUniform": porting.he_uniform_,
    "HeNormal": porting.he_normal_,
    "LecunUniform": porting.lecun_uniform_,
    "LecunNormal": porting.lecun_normal_,
    "TruncatedNormal": porting.truncated_normal_,
    "VarianceScaling": lambda weight: porting.variance_scaling_(weight, 3.0, "fan_out", "untruncated_normal"),
}


@pytest.mark.parametrize("name", cases.INITIALIZERS)
def test_start_weights_are_of_the_distribution_of_keras(name: str, theirs: Arrays) -> None:
    torch.manual_seed(0)
    shape = cases.INITIALIZERS[name][0]
    in_torch = torch.empty(shape[-1], shape[-2], *shape[:-2])
    found = {filler: FILLERS[filler](in_torch).numpy().copy() for filler in FILLERS}
    reference = np.moveaxis(theirs[f"initializers/{name}"], (-1, -2), (0, 1))
    assert alike(found[name], reference)
    for other, sample in found.items():  # of the same variance, and of another shape
        if other.removesuffix("Normal") == name.removesuffix("Uniform") and other != name:
            assert not alike(sample, reference)


def test_defaults_are_drawn_by_kind_of_layer(theirs: Arrays) -> None:
    torch.manual_seed(0)
    embedding, conv, prelu = nn.Embedding(200, 30), nn.Conv2d(20, 40, 3), nn.PReLU()
    depthwise, grouped = nn.Conv2d(20, 20 * 40, 3, groups=20), nn.Conv2d(20, 40, 3, groups=2)
    nn.Sequential(embedding, conv, prelu, nn.ReLU(), depthwise, grouped).apply(porting.keras_defaults_)
    assert alike(embedding.weight.detach().numpy(), theirs["initializers/Embedding"])
    assert alike(porting.KerasEmbedding(200, 30).weight.detach().numpy(), theirs["initializers/Embedding"])
    reference = np.moveaxis(theirs["initializers/GlorotUniform"], (-1, -2), (0, 1))
    assert alike(conv.weight.detach().numpy(), reference)
    assert alike(depthwise.weight.detach().reshape(40, 20, 3, 3).numpy(), reference)  # Keras' kernel is [3, 3, 20, 40]
    assert float(grouped.weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / (9 * 10 + 9 * 40)), rel=0.01)
    assert not conv.bias.any()
    assert prelu.weight == 0


def test_targets_get_the_rank_that_keras_gives_them(theirs: Arrays) -> None:
    predictions, targets = tensor(cases.draw(6, 1)), tensor(cases.draw(6, seed=1))
    ours = nn.functional.mse_loss(predictions, porting.match_rank(targets, predictions))
    assert difference(ours, theirs["losses/[N, 1] and [N]"]) <= TOLERANCE
    ours = nn.functional.mse_loss(predictions[:, 0], porting.match_rank(targets[:, None], predictions[:, 0]))
    assert difference(ours, theirs["losses/[N] and [N, 1]"]) <= TOLERANCE
    with pytest.raises(ValueError, match=r"targets are \[5\] and predictions \[6, 1\]"):
        porting.match_rank(targets[:5], predictions)


ROUNDED = ("optimizers/momentum", "optimizers/nesterov", "optimizers/adam", "optimizers/adagrad", "schedules")


@pytest.mark.slow
def test_keras_rounds_the_constants_that_the_docstrings_name_and_no_others(theirs: Arrays, rounded: Arrays) -> None:
    def differences(key: str) -> float:
        return difference(rounded[key], theirs[key])

    keys = [key for key in theirs if not key.startswith("initializers/") and not key.endswith("/start")]
    assert max(differences(key) for key in keys if not key.startswith(ROUNDED) and "/True/" not in key) == 0
    for group in ROUNDED:
        # Adam's 1 - beta_2 is 1.29e-5 too small in float32, so that each step of at most 0.01 is 6.4e-6 of it too long.
        most = cases.STEPS * 0.01 * 6.5e-6 if group == "optimizers/adam" else 1e-6
        assert 1e-10 < max(differences(key) for key in keys if key.startswith(group)) < most

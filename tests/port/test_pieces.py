"""What the classes of `lit_mnist.porting` do beyond the arithmetic that tests/parity holds against Keras."""

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_mnist import porting
from lit_mnist.porting import KerasAdagrad, KerasBatchNorm, KerasEmbedding, KerasRMSprop, KerasSGD
from lit_mnist.porting.padding import same_padding

OPTIMIZERS = [
    lambda parameters: KerasSGD(parameters, momentum=0.9, nesterov=True),
    lambda parameters: KerasRMSprop(parameters, momentum=0.9, centered=True),
    lambda parameters: KerasAdagrad(parameters),
]


def start() -> nn.Parameter:
    return nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))


def steps(optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(first, first + count):
        parameter.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(1 + step))
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("through", ["state_dict", "pickle", "deepcopy"])
def test_a_training_goes_on_from_a_saved_optimizer(make: Any, through: str) -> None:
    whole = make([start()])
    steps(whole, 6)
    half = make([start()])
    steps(half, 3)
    if through == "state_dict":
        (parameter,) = half.param_groups[0]["params"]
        other = make([parameter])
        other.load_state_dict(half.state_dict())
    else:
        other = copy.deepcopy(half) if through == "deepcopy" else pickle.loads(pickle.dumps(half))
    steps(other, 3, first=3)
    assert torch.equal(other.param_groups[0]["params"][0], whole.param_groups[0]["params"][0])


@pytest.mark.parametrize(
    ("optimizer_class", "arguments", "error", "says"),
    [
        (KerasSGD, {"lr": -1.0}, ValueError, "lr is -1.0, expected 0 or more"),
        (KerasSGD, {"lr": math.nan}, ValueError, "lr is nan"),
        (KerasSGD, {"momentum": 1.5}, ValueError, "momentum is 1.5, expected 0 to 1"),
        (KerasSGD, {"weight_decay": 0.1}, TypeError, "KerasSGD has no weight_decay"),
        (KerasSGD, {"learning_rate": 0.1}, TypeError, "Keras' learning_rate is called lr here"),
        (KerasRMSprop, {"epsilon": 1e-7}, TypeError, "Keras' epsilon is called eps here"),
        (KerasRMSprop, {"alpha": 0.9}, TypeError, "KerasRMSprop has no alpha"),
        (KerasRMSprop, {"rho": -0.1}, ValueError, "rho is -0.1, expected 0 to 1"),
        (KerasRMSprop, {"eps": -1.0}, ValueError, "eps is -1.0"),
        (KerasAdagrad, {"initial_accumulator_value": -1.0}, ValueError, "initial_accumulator_value is -1.0"),
        (KerasAdagrad, {"clipnorm": 1.0}, TypeError, "KerasAdagrad has no clipnorm"),
    ],
)
@pytest.mark.parametrize("in_group", [False, True])
def test_what_an_optimizer_does_not_take_is_refused_by_name(
    optimizer_class: Any, arguments: dict[str, Any], error: type[Exception], says: str, in_group: bool
) -> None:
    with pytest.raises(error, match=says):
        optimizer_class([{"params": [start()], **arguments}]) if in_group else optimizer_class([start()], **arguments)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_parameter_without_a_gradient_stays(make: Any) -> None:
    parameter = start()
    optimizer = make([parameter])
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(parameter, start())
    assert not optimizer.state


@pytest.mark.parametrize("gradient", [torch.eye(3).to_sparse(), torch.ones(3, 3, dtype=torch.complex64)])
def test_a_gradient_that_cannot_be_taken_is_named(gradient: Tensor) -> None:
    parameter = nn.Parameter(torch.zeros(3, 3, dtype=gradient.dtype))
    parameter.grad = gradient
    with pytest.raises(RuntimeError, match="expected real gradients, dense or of an embedding"):
        KerasSGD([parameter]).step()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_rows_without_repeats_are_a_dense_gradient(make: Any) -> None:
    found = []
    for embedding_class in (KerasEmbedding, nn.Embedding):
        embedding = embedding_class(5, 2)
        nn.init.ones_(embedding.weight)
        optimizer = make(embedding.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([0, 3, 1])).square().sum().backward()
            optimizer.step()
        found.append(embedding.weight)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_schedule_is_refused_what_it_cannot_do() -> None:
    optimizer = KerasSGD([start()], lr=0.1)
    with pytest.raises(ValueError, match="number of steps is 0, expected more than 0"):
        porting.ExponentialDecay(optimizer, 0, 0.9)
    with pytest.raises(ValueError, match="2 boundaries and 2 values"):
        porting.PiecewiseConstantDecay(optimizer, [1, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"t_mul is 0\.5"):
        porting.CosineDecayRestarts(optimizer, 5, t_mul=0.5)


def test_a_schedule_goes_on_from_its_state() -> None:
    rates = []
    for resumed in (False, True):
        optimizer = KerasSGD([{"params": [start()]}, {"params": [start()], "lr": 0.2}], lr=0.1)
        scheduler = porting.CosineDecay(optimizer, 10)
        for step in range(8):
            if resumed and step == 4:
                state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer = KerasSGD([{"params": [start()]}, {"params": [start()], "lr": 0.2}], lr=0.1)
                scheduler = porting.CosineDecay(optimizer, 10)
                for each, of_it in zip((optimizer, scheduler), state, strict=True):
                    each.load_state_dict(of_it)
            optimizer.step()
            scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]
    assert rates[0][1] == pytest.approx(2 * rates[0][0])


def test_as_little_is_padded_as_gives_every_output() -> None:
    for length, kernel, stride, dilation in itertools.product(range(1, 12), range(1, 5), range(1, 4), range(1, 3)):
        before, after = same_padding(length, kernel, stride, dilation)
        span = (kernel - 1) * dilation + 1
        outputs = (length + before + after - span) // stride + 1
        assert outputs == math.ceil(length / stride)
        assert 0 <= after - before <= 1
        if before + after:
            assert (length + before + after - 1 - span) // stride + 1 < outputs


def test_batch_norm_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match=r"momentum is 1\.1"):
        KerasBatchNorm(3, momentum=1.1)
    with pytest.raises(ValueError, match="eps is -1"):
        KerasBatchNorm(3, eps=-1)


def test_one_bias_of_the_lstm_is_trained_and_it_goes_through_a_state_dict() -> None:
    layer, other = porting.KerasLSTM(3, 4), porting.KerasLSTM(3, 4)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == [
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
    ]
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(layer(x)[0], other(x)[0])


def test_every_public_name_is_explained() -> None:
    for name in porting.__all__:
        assert (getattr(porting, name).__doc__ or "").endswith((".", ".\n    ")), name

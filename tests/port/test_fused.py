"""The fast path in place of convolution, ReLU and pooling, against the layers."""

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_mnist import LitMNIST, MNISTClassifier, MNISTDataModule, mutants
from lit_mnist.fused import conv_relu_pool

# The largest difference from the layers in float64, relative to the largest element, in units of the last place of one.
# Measured over the cases below: 12.
ULPS = 50
# In float32, how many times the layers' own error against float64, or a few roundings, it may be. Measured: 0.62.
TIMES, FEW = 2, 2**-21


@cache
def digits() -> Tensor:
    data = MNISTDataModule()
    data.setup()
    return data.train.tensors[0][:100].double() / 255


def images(kind: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 1, 28, 28, generator=generator, dtype=torch.float64)
    return {
        "digits": digits()[:count],
        "noise": noise,
        "zero": torch.zeros_like(noise),
        "saturated": torch.ones_like(noise),
        "binary": noise.round(),
        "three levels": (2 * noise).round() / 2,
    }[kind]


def layers(kernel: str, bias: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(6, 1, 3, 3, generator=generator, dtype=torch.float64) - 0.5
    weight = {
        "drawn": drawn,
        "zero": torch.zeros_like(drawn),
        # Sums of binary pixels that are exact in any order: equal ones are equal.
        "of one value": torch.tensor([1, 0.5, -0.25, 2, -1, 0.125]).double().reshape(6, 1, 1, 1).expand(6, 1, 3, 3),
    }[kernel]
    return weight, {
        "zero": torch.zeros(6, dtype=torch.float64),
        "mixed": torch.tensor([0.5, -0.5, 1, -2, 0, 0.125], dtype=torch.float64),
    }[bias]


def plain(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(images, weight, bias, padding="same")), 2)


Way = Callable[[Tensor, Tensor, Tensor], Tensor]
Case = tuple[str, str, str, int]
CASES: list[Case] = [
    (kind, "drawn", bias, count)
    for kind in ("digits", "noise", "zero", "saturated", "binary", "three levels")
    for bias in ("zero", "mixed")
    for count in (100, 1)
]
CASES += [("noise", "drawn", "mixed", 37), ("noise", "drawn", "mixed", 0)]
CASES += [(kind, "zero", bias, 20) for kind in ("digits", "noise") for bias in ("zero", "mixed")]
CASES += [("binary", "of one value", bias, 20) for bias in ("zero", "mixed")]


def results(way: Way, case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """What it gives, and the gradients of kernel and bias, in float64."""
    kind, kernel, bias, count = case
    weight, offset = (tensor.to(dtype).requires_grad_() for tensor in layers(kernel, bias))
    pooled = way(images(kind, count).to(dtype), weight, offset)
    by_pooled = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = torch.autograd.grad(pooled, (weight, offset), by_pooled.to(dtype))
    return [tensor.detach().double() for tensor in (pooled, *gradients)]


def errors(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.numel()]
    return [float((one - other).abs().max() / other.abs().max().clamp(min=1e-3)) for one, other in pairs]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_layers(case: Case) -> None:
    assert max(errors(results(conv_relu_pool, case), results(plain, case))) < ULPS * 2**-52


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "drawn"], ids=str)
def test_in_float32_it_is_as_near_to_float64_as_the_layers(case: Case) -> None:
    exact = results(plain, case)
    ours, theirs = (errors(results(way, case, torch.float32), exact) for way in (conv_relu_pool, plain))
    assert max(ours) < TIMES * max(*theirs, FEW)


@pytest.mark.parametrize("mutant", [mutants.ForgottenShift, mutants.LastOfEquals, mutants.GradientBeforeBias])
def test_a_wrong_fast_path_is_noticed(mutant: type[mutants.Fused]) -> None:
    worst = max(max(errors(results(mutant.conv_relu_pool, case), results(plain, case))) for case in CASES if case[3])
    assert worst > 1e-3


def test_values_are_the_same_without_gradients() -> None:
    weight, bias = layers("drawn", "mixed")
    with_gradients = results(conv_relu_pool, ("noise", "drawn", "mixed", 100))[0]
    assert torch.equal(conv_relu_pool(images("noise", 100), weight, bias), with_gradients)


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    """DDP warns of others."""
    module = LitMNIST()
    module.training_step((images("digits", 5), torch.arange(5)), 0).backward()
    for parameter in (module.model.conv.weight, module.model.conv.bias):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def test_the_gradient_can_be_taken_twice_from_one_graph() -> None:
    weight, bias = (tensor.requires_grad_() for tensor in layers("drawn", "mixed"))
    loss = (conv_relu_pool(images("noise", 5), weight, bias) ** 2).sum()
    first, second = (torch.autograd.grad(loss, (weight, bias), retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", ["nothing", "conv.weight", "conv.bias"])
def test_first_and_second_derivatives_are_those_of_the_layers(frozen: str) -> None:
    ours, theirs = (MNISTClassifier(fused).double() for fused in (conv_relu_pool, None))
    ours.load_state_dict(theirs.state_dict())
    second = []
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name != frozen
        loss = F.cross_entropy(model(images("digits", 10)), torch.arange(10))
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        again = torch.autograd.grad(sum((g**2).sum() for g in gradients), parameters)
        second.append([*(g.detach() for g in gradients), *again])
    assert max(errors(second[0], second[1])) < ULPS * 2**-52


def test_many_gradients_at_once_are_those_one_after_the_other() -> None:
    model = MNISTClassifier(conv_relu_pool)
    logits = model(images("digits", 2).float()).flatten()
    parameters = list(model.parameters())
    together = torch.autograd.grad(logits, parameters, torch.eye(20), is_grads_batched=True, retain_graph=True)
    for i in range(20):
        alone = torch.autograd.grad(logits[i], parameters, retain_graph=True)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other[i], atol=1e-6, rtol=1e-5)


# Where it is not taken


class Spy:
    """The fast path, counting how often it is taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.taken += 1
        return conv_relu_pool(images, weight, bias)


def nothing(*_: Any) -> None:
    pass


def replace(name: str, layer: nn.Module) -> Callable[[MNISTClassifier], None]:
    return lambda model: setattr(model, name, layer)


def without_bias(model: MNISTClassifier) -> None:
    model.conv.bias = None


CHANGES: dict[str, Callable[[MNISTClassifier], Any]] = {
    "forward hook on conv": lambda model: model.conv.register_forward_hook(nothing),
    "forward hook on pool": lambda model: model.pool.register_forward_hook(nothing),
    "forward pre-hook": lambda model: model.conv.register_forward_pre_hook(nothing),
    "backward hook": lambda model: model.pool.register_full_backward_hook(nothing),
    "backward pre-hook": lambda model: model.conv.register_full_backward_pre_hook(nothing),
    "parametrization": lambda model: nn.utils.parametrizations.weight_norm(model.conv),
    "pruning": lambda model: nn.utils.prune.l1_unstructured(model.conv, "weight", 5),
    "5 x 5": replace("conv", nn.Conv2d(1, 6, 5, padding="same")),
    "dilation": replace("conv", nn.Conv2d(1, 6, 3, dilation=2, padding=2)),
    "padding with reflections": replace("conv", nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect")),
    "no bias": without_bias,
    "average pooling": replace("pool", nn.AvgPool2d(2)),
    "dilated pooling": replace("pool", nn.MaxPool2d(2, 2, padding=1, dilation=3)),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_watched_or_changed_takes_its_layers(change: str) -> None:
    model = MNISTClassifier(spy := Spy())
    CHANGES[change](model)
    ours = model(images("digits", 3).to(model.output.weight.dtype))
    assert spy.taken == 0
    model.fused = None
    assert torch.equal(model(images("digits", 3).to(model.output.weight.dtype)), ours)


def tangents(model: MNISTClassifier, x: Tensor) -> None:
    torch.func.jvp(model, (x,), (x,))


def dual(model: MNISTClassifier, x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        assert (
            torch.autograd.forward_ad.unpack_dual(model(torch.autograd.forward_ad.make_dual(x, x))).tangent is not None
        )


def autocast(model: MNISTClassifier, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def per_image_gradients(model: MNISTClassifier, x: Tensor) -> None:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).sum()

    torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)


def global_hook(model: MNISTClassifier, x: Tensor) -> None:
    handle = nn.modules.module.register_module_forward_hook(nothing)
    model(x)
    handle.remove()


def replaced_forward(model: MNISTClassifier, x: Tensor) -> None:
    model.conv.forward = model.conv.forward  # type: ignore[method-assign]  # as a library that wraps it does
    model(x)
    del model.conv.forward


def fake(model: MNISTClassifier, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))


USES: dict[str, Callable[[MNISTClassifier, Tensor], Any]] = {
    "gradient of images": lambda model, x: model(x.clone().requires_grad_()).sum().backward(),
    "autocast": autocast,
    "jit.trace": lambda model, x: torch.jit.trace(model, x, check_trace=False),
    "fx": lambda model, x: torch.fx.symbolic_trace(model)(x),
    "export": lambda model, x: torch.export.export(model, (x,)),
    "compile": lambda model, x: torch.compile(model, backend="eager")(x),
    "vmap": lambda model, x: torch.func.vmap(model)(x[:, None]),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x[:1]),
    "jvp": tangents,
    "forward-mode derivative": dual,
    "gradient of each image": per_image_gradients,
    "global hook": global_hook,
    "replaced forward": replaced_forward,
    "fake tensors": fake,
    "images of an odd size": lambda model, x: model.pool(F.relu(model.conv(x[..., :27, :27]))),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("use", USES)
def test_whoever_traces_transforms_or_wants_more_takes_the_layers(use: str) -> None:
    model = MNISTClassifier(spy := Spy())
    USES[use](model, images("digits", 3).float())
    assert spy.taken == 0
    model(images("digits", 3).float())
    assert spy.taken == 1


# In the module


def test_training_without_it_is_what_the_layers_give_to_the_bit() -> None:
    module = LitMNIST(fused=False)
    stack = module.model
    x = images("digits", 100).float()
    layered = stack.output(F.relu(stack.hidden(stack.flatten(stack.pool(F.relu(stack.conv(x)))))))
    assert torch.equal(stack(x), layered)


def test_it_is_taken_to_train_to_evaluate_and_to_predict() -> None:
    module = LitMNIST()
    module.model.fused = spy = Spy()
    batch = images("digits", 10), torch.arange(10)
    module.training_step(batch, 0).backward()
    with torch.inference_mode():
        module.validation_step(batch, 0)
        module.predict_step(batch, 0)
    assert spy.taken == 3


def test_names_and_copies_of_the_module_are_as_before() -> None:
    module = LitMNIST()
    assert list(module.state_dict()) == list(LitMNIST(fused=False).state_dict())
    x = images("digits", 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))

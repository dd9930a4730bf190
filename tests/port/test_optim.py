"""KerasAdam against a restatement of Keras' formula in NumPy."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference import NumPyAdam, alpha, denominator
from torch.optim.adam import adam

from lit_mnist import KerasAdam, KerasAdamW
from lit_mnist.optim import STATE, has_exact_kernel, has_kernel
from lit_mnist.porting import KerasEmbedding

STEPS = 200
# The largest error allowed after 200 steps, in units of the last place of the largest weight. Measured: 2.0 in float32
# and in float64 (the fused kernel rounds m and v once where Keras rounds twice). torch.optim.Adam(eps=1e-7) is off
# by more than 1e4 of them in float32.
ULPS = 8


def gradients(dtype: torch.dtype, size: int = 5000, steps: int = STEPS) -> Iterator[torch.Tensor]:
    """Gradients of many magnitudes, 1e-9 to 1, some of them exactly zero, as ReLU makes them."""
    generator = torch.Generator().manual_seed(1)
    scale = 10 ** (-9 * torch.rand(size, generator=generator))
    for _ in range(steps):
        gradient = torch.randn(size, generator=generator) * scale
        yield torch.where(torch.rand(size, generator=generator) < 0.2, 0, gradient).to(dtype)


def start(dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(0.1 * torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype))


def error_in_ulps(optimizer: torch.optim.Optimizer, w: torch.nn.Parameter, schedule: bool = False) -> float:
    theirs = NumPyAdam(w.detach().numpy())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if schedule else None
    worst = 0.0
    for g in gradients(w.dtype):
        lr = optimizer.param_groups[0]["lr"]
        w.grad = g
        optimizer.step()
        theirs.step(g.numpy(), lr)
        if scheduler:
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == (lr * 0.9 if schedule else 1e-3)
        worst = max(worst, np.abs(w.detach().numpy() - theirs.w).max())
    return worst / np.spacing(np.abs(theirs.w).max())


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_follows_keras_formula(dtype: torch.dtype, fused: bool, schedule: bool) -> None:
    w = start(dtype)
    assert error_in_ulps(KerasAdam([w], fused=fused), w, schedule) <= ULPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_are_keras_to_the_last_bit_given_m_and_v(dtype: torch.dtype) -> None:
    w = start(dtype)
    optimizer = KerasAdam([w])
    for t, g in enumerate(gradients(dtype, steps=50), start=1):
        before, w.grad = w.detach().numpy().copy(), g
        optimizer.step()
        m, v = optimizer.state[w]["exp_avg"].numpy(), optimizer.state[w]["exp_avg_sq"].numpy()
        np.testing.assert_array_equal(w.detach().numpy(), before - m * alpha(t, m.dtype.type) / denominator(v))


@pytest.mark.parametrize(
    "mutant",
    [
        lambda w: torch.optim.Adam([w], eps=1e-7),  # the usual port: epsilon added after the correction
        lambda w: torch.optim.Adam([w], eps=1e-8),
        lambda w: KerasAdam([w], eps=1e-8),
        lambda w: KerasAdam([w], betas=(0.9, 0.99)),
        lambda w: torch.optim.AdamW([w], eps=1e-7),
    ],
)
def test_another_optimizer_is_noticed(mutant: type[torch.optim.Optimizer]) -> None:
    w = start(torch.float32)
    assert error_in_ulps(mutant(w), w) > 100 * ULPS


def test_exact_betas_are_noticed_in_float64() -> None:
    w = start(torch.float64)
    assert error_in_ulps(KerasAdam([w], float32_constants=False), w) > 100 * ULPS


def test_a_saved_optimizer_goes_on_to_the_same_bit() -> None:
    w = start(torch.float32)
    optimizer = KerasAdam([w])
    for i, g in enumerate(gradients(torch.float32, steps=20)):
        if i == 10:
            other_w = torch.nn.Parameter(w.detach().clone())
            other = KerasAdam([other_w])
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        w.grad = g
        optimizer.step()
        if i >= 10:
            other_w.grad = g
            other.step()
    assert torch.equal(w, other_w)
    assert other.param_groups[0]["t"] == 20


def test_the_state_of_torchs_adam_is_refused() -> None:
    w = start(torch.float32)
    other = torch.optim.Adam([w])
    w.grad = torch.ones_like(w)
    other.step()
    with pytest.raises(ValueError, match="another optimizer"):
        KerasAdam([w]).load_state_dict(other.state_dict())


def test_a_state_of_other_shapes_is_refused() -> None:
    w = start(torch.float32)
    optimizer = KerasAdam([w])
    w.grad = torch.ones_like(w)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg_sq"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"exp_avg_sq is \(1,\), expected"):
        KerasAdam([w]).load_state_dict(state)


def test_a_refused_state_changes_nothing() -> None:
    w = start(torch.float32)
    optimizer = KerasAdam([w], global_clipnorm=1.0)
    with pytest.raises(ValueError, match="another optimizer"):
        optimizer.load_state_dict(torch.optim.SGD([w]).state_dict())
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.param_groups[0]["t"] == 1


def test_torchs_private_kernel_is_the_one_that_is_called() -> None:
    """If this fails, torch has changed it: the public function is called meanwhile, and a step takes longer."""
    assert has_kernel()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_and_without_the_private_kernel_it_is_the_same_to_the_bit(
    dtype: torch.dtype, amsgrad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct, public = start(dtype), start(dtype)
    calls = []
    monkeypatch.setattr("lit_mnist.optim.adam", lambda *tensors, **options: calls.append(adam(*tensors, **options)))
    for known, w in ((True, direct), (False, public)):
        monkeypatch.setattr("lit_mnist.optim.has_kernel", lambda known=known: known)
        optimizer = KerasAdam([w], amsgrad=amsgrad)
        for g in gradients(dtype, steps=5):
            w.grad = g
            optimizer.step()
    assert torch.equal(direct, public)
    assert len(calls) == 5


@pytest.mark.parametrize(("fused", "largest"), [(True, 5e-5), (False, 2e-6)])
def test_what_the_kernel_rounds_in_float32_the_formula_does_not(fused: bool, largest: float) -> None:
    """docs/findings.md, "Adam in float32": the same gradient for 3,000 steps, of which v is 0.95 in the end."""
    w = torch.nn.Parameter(torch.zeros(4096))
    optimizer = KerasAdam([w], fused=fused)
    w.grad = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 0.1
    for _ in range(3000):
        optimizer.step()
    exact = w.grad.double() ** 2 * (1 - (1 - 0.001) ** 3000)
    error = (optimizer.state[w]["exp_avg_sq"] / exact - 1).abs().max()
    assert largest / 10 < error < largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_amsgrad_the_formula_is_the_kernels(dtype: torch.dtype) -> None:
    ours, kernels = start(dtype), start(dtype)
    optimizers = [KerasAdam([w], amsgrad=True, fused=w is kernels) for w in (ours, kernels)]
    for step, g in enumerate(gradients(dtype, steps=20)):
        for w, optimizer in zip((ours, kernels), optimizers, strict=True):
            w.grad = g / (1 + step)  # so that the largest v is an earlier one
            optimizer.step()
    torch.testing.assert_close(ours, kernels, rtol=0, atol=float(ULPS * torch.finfo(dtype).eps))
    assert not torch.equal(*(o.state[w][name] for o, w in [(optimizers[0], ours)] for name in STATE[1:3]))


@pytest.mark.parametrize(
    ("device", "dtype", "exact"),
    [
        ("cpu", torch.float32, True),
        ("cuda", torch.float64, True),
        ("cuda", torch.float32, False),  # 1 - float32(0.999), 1.3e-5 too small
        ("mps", torch.float32, False),  # never looked at
    ],
)
def test_the_kernel_is_called_where_it_computes_as_keras_does(device: str, dtype: torch.dtype, exact: bool) -> None:
    parameter: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert has_exact_kernel([parameter]) == exact


def test_a_parameter_that_is_replaced_or_moved_is_updated_as_it_then_is() -> None:
    """Nothing of one step is kept for the next: no list, no layout, no precision."""
    w = start(torch.float32)
    optimizer = KerasAdam([w])
    w.grad = torch.ones_like(w)
    optimizer.step()
    w.data = w.data.double()
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[w][name] = optimizer.state[w][name].double()
    w.grad = torch.ones_like(w)
    before = w.detach().clone()
    optimizer.step()
    assert w.dtype == torch.float64
    assert (w < before).all()
    other = start(torch.float32)
    optimizer.param_groups[0]["params"][0] = other
    other.grad, before = torch.ones_like(other), other.detach().clone()
    optimizer.step()
    assert (other < before).all()


def test_without_any_gradient_no_step_is_taken() -> None:
    """Keras' `apply` returns at once then, too."""
    w = start(torch.float32)
    optimizer = KerasAdam([{"params": [w], "name": "all", "initial_lr": 0.1}], global_clipnorm=1.0)
    optimizer.step()
    assert optimizer.param_groups[0]["t"] == 0


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "part of a larger one": lambda x: torch.nn.functional.pad(x, (0, 3))[..., :-3],
}


@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_the_layout_in_memory_changes_nothing(of_parameter: str, of_gradient: str) -> None:
    """torch's fused kernel goes through memory as it lies, whatever the strides say."""
    generator = torch.Generator().manual_seed(0)
    values, gradient = (torch.randn(4, 3, 5, 2, generator=generator) for _ in range(2))
    plain, other = torch.nn.Parameter(values.clone()), torch.nn.Parameter(LAYOUTS[of_parameter](values.clone()))
    optimizers = [KerasAdam([plain]), KerasAdam([other])]
    for _ in range(3):
        plain.grad, other.grad = gradient.clone(), LAYOUTS[of_gradient](gradient.clone())
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-6)


def test_a_group_that_is_added_later_is_excluded_by_name_too() -> None:
    weight, bias = start(torch.float32), start(torch.float32)
    optimizer = KerasAdamW([("weight", weight)], weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.add_param_group({"params": [("bias", bias)]})
    before = bias.detach().clone()
    for w in (weight, bias):
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert torch.equal(bias, before)
    assert not torch.equal(weight, before)


def test_step_returns_the_loss_of_its_closure() -> None:
    w = start(torch.float32)

    def closure() -> torch.Tensor:
        w.grad = None
        loss = (w**2).sum()
        loss.backward()
        return loss

    first, second = (KerasAdam([w]).step(closure) for _ in range(2))
    assert second < first


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -1.0}, ValueError, "lr is -1.0, expected 0 or more"),
    ({"lr": math.nan}, ValueError, "lr is nan"),
    ({"lr": None}, ValueError, "lr is None, expected 0 or more"),
    ({"eps": -1.0}, ValueError, "eps is -1.0"),
    ({"eps": "1e-7"}, ValueError, "eps is '1e-7', expected 0 or more"),
    ({"betas": ("0.9", 0.9)}, ValueError, r"betas are \('0.9', 0.9\)"),
    ({"weight_decay": "0.1"}, ValueError, "weight_decay is '0.1', expected 0 or more"),
    ({"clipnorm": "1"}, ValueError, "clipnorm is '1', expected more than 0"),
    ({"betas": (1.0, 0.9)}, ValueError, r"betas are \(1.0, 0.9\)"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
    ({"clipnorm": 0.0}, ValueError, "clipnorm is 0.0, expected more than 0"),
    ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "clipnorm and clipvalue are given"),
    ({"maximize": True}, TypeError, "has no maximize"),
    ({"learning_rate": 0.1}, TypeError, "Keras' learning_rate is called lr here"),
    ({"beta_2": 0.9}, TypeError, "Keras' beta_2 is called betas here"),
]


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize(("arguments", "error", "says"), WRONG)
def test_what_keras_adam_does_not_take_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], says: str, in_group: bool
) -> None:
    w = start(torch.float32)
    with pytest.raises(error, match=says):
        KerasAdam([{"params": [w], **arguments}]) if in_group else KerasAdam([w], **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ema_momentum": 1.5},
        {"ema_momentum": None},
        {"ema_overwrite_frequency": 0},
        {"ema_overwrite_frequency": "1"},
        {"global_clipnorm": -1},
    ],
)
def test_what_is_of_all_groups_together_is_checked_and_refused_in_a_group(arguments: dict[str, Any]) -> None:
    w = start(torch.float32)
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} is"):
        KerasAdam([w], **arguments)
    with pytest.raises(TypeError, match=f"has {name}, which is of all groups together"):
        KerasAdam([{"params": [w], name: 1}])


def test_groups_have_their_own_values() -> None:
    """Two groups with values of their own train as two optimizers would."""
    ours, theirs = ([start(dtype) for dtype in (torch.float32, torch.float64)] for _ in range(2))
    own: list[dict[str, Any]] = [{"weight_decay": 0.1, "amsgrad": True}, {"clipnorm": 0.5, "lr": 0.01}]
    together = KerasAdam([{"params": [w], **values} for w, values in zip(ours, own, strict=True)])
    apart = [KerasAdam([w], **values) for w, values in zip(theirs, own, strict=True)]
    for g in gradients(torch.float32, steps=5):
        for w in (*ours, *theirs):
            w.grad = g.to(w.dtype)
        for optimizer in (together, *apart):
            optimizer.step()
    assert all(torch.equal(w, other) for w, other in zip(ours, theirs, strict=True))


def test_parameters_of_two_precisions_in_a_group_are_each_updated_in_their_own() -> None:
    together, apart = ([start(dtype) for dtype in (torch.float32, torch.float64)] for _ in range(2))
    optimizers = [KerasAdam(together), *(KerasAdam([w]) for w in apart)]
    for g in gradients(torch.float32, steps=5):
        for w in (*together, *apart):
            w.grad = g.to(w.dtype)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(w, other) for w, other in zip(together, apart, strict=True))


def test_the_state_says_the_step_where_torchs_optimizers_look_for_it() -> None:
    w = start(torch.float32)
    ours = KerasAdam([w])
    for g in gradients(torch.float32, steps=7):
        w.grad = g
        ours.step()
    theirs = torch.optim.Adam([w])
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[w]["step"] == 7
    theirs.step()
    assert theirs.state[w]["step"] == 8
    assert torch.equal(theirs.state[w]["exp_avg"].isfinite(), torch.ones(5000, dtype=torch.bool))


def test_a_copied_optimizer_keeps_what_it_was_told() -> None:
    w = start(torch.float32)
    optimizer = KerasAdam([w], weight_decay=0.1, use_ema=True)
    optimizer.exclude_from_weight_decay([w])
    copied = pickle.loads(pickle.dumps(optimizer))
    (other_w,) = copied.param_groups[0]["params"]
    for each, each_optimizer in ((w, optimizer), (other_w, copied)):
        each.grad = torch.ones_like(each)
        each_optimizer.step()
    assert torch.equal(w, other_w)
    assert "average" in copied.state[other_w]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(20,), (5,), (10, 1)])
def test_a_parameter_that_has_got_another_shape_is_refused(shape: tuple[int, ...], fused: bool) -> None:
    w = torch.nn.Parameter(torch.ones(10))
    optimizer = KerasAdam([w], fused=fused)
    for size in ((10,), shape):
        w.grad = None
        w.data = torch.ones(size)
        w.grad = torch.ones(size)
        if size == (10,):
            optimizer.step()
    with pytest.raises(RuntimeError, match=r"a parameter was \[10\] and is .* now; make a new optimizer"):
        optimizer.step()
    assert torch.equal(w, torch.ones(shape))


def test_averages_begin_with_the_weights_and_leave_frozen_ones_alone() -> None:
    early, late = (torch.nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0))
    frozen = torch.nn.Parameter(torch.linspace(0.1, 0.9, 100), requires_grad=False)  # which averaging would round
    optimizer = KerasAdam([early, frozen], lr=0.0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=1)
    for step in range(6):
        if step == 3:
            optimizer.param_groups[0]["params"].append(late)
        for parameter in (early, late):
            parameter.grad = torch.ones(3)
        optimizer.step()
    optimizer.overwrite_with_averages()
    assert [parameter.unique().tolist() for parameter in (early, late)] == [[pytest.approx(1)], [pytest.approx(2)]]
    assert torch.equal(frozen, torch.linspace(0.1, 0.9, 100))


def test_names_are_needed_to_exclude_by_name() -> None:
    with pytest.raises(ValueError, match="named_parameters"):
        KerasAdam([start(torch.float32)]).exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize("gradient", [torch.eye(3).to_sparse(), torch.ones(3, 3, dtype=torch.complex64)])
def test_a_gradient_that_cannot_be_taken_is_named(gradient: torch.Tensor) -> None:
    w = torch.nn.Parameter(torch.zeros(3, 3, dtype=gradient.dtype))
    w.grad = gradient
    with pytest.raises(RuntimeError, match="expected real gradients, dense or of an embedding"):
        KerasAdam([w]).step()


def test_rows_of_an_embedding_are_not_clipped() -> None:
    embedding = KerasEmbedding(3, 2)
    embedding(torch.tensor([0, 0])).sum().backward()
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        KerasAdam(embedding.parameters(), clipnorm=1.0).step()


def test_a_step_that_overflowed_in_16_bits_is_not_counted() -> None:
    """torch's GradScaler leaves the step out; `_step_supports_amp_scaling` is what it looks at."""
    w = start(torch.float32)
    optimizer, scaler = KerasAdam([w]), torch.amp.GradScaler("cpu")
    for gradient, t in ((1.0, 1), (torch.inf, 1), (1.0, 2)):
        scaler.scale((w * 0).sum())  # makes the scale
        w.grad = torch.full_like(w, gradient)
        before = w.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["t"] == t
        assert torch.equal(before, w) == (gradient == torch.inf)

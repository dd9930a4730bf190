"""Adam and AdamW with the arithmetic of Keras."""

import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam  # the public function behind torch.optim.Adam

IN_TORCH = {"learning_rate": "lr", "beta_1": "betas", "beta_2": "betas", "epsilon": "eps"}  # by Keras' name
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
OF_ALL_GROUPS = ("global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency")
STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "average")  # tensors of a parameter's shape

# The kernel that `adam` calls. To call it directly saves 0.08 ms of the 0.42 ms that a step takes; but it is private,
# and where torch has another one, `adam` is called.
KERNEL = (
    "aten::_fused_adam_(Tensor(a!)[] self, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor[] state_steps, *, float lr, float beta1, float beta2, float weight_decay, "
    "float eps, bool amsgrad, bool maximize, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


class KerasAdam(torch.optim.Optimizer):
    """Update parameters as `keras.optimizers.Adam` does, with torch's fused kernels.

    Source: keras/src/optimizers/adam.py, which computes at step t = 1, 2, ...

        alpha = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)
        m += (g - m) * (1 - beta_1)
        v += (g^2 - v) * (1 - beta_2)
        w -= m * alpha / (sqrt(v) + eps)

    torch corrects v *before* it adds eps; Keras adds eps to the uncorrected sqrt(v), the "epsilon hat" of Kingma and
    Ba (2015), section 2. `torch.optim.Adam(eps=1e-7)` is therefore another optimizer, most of all in the first steps.
    Here the correction is put into alpha, and torch's kernel is told that it is at step infinity, where
    beta^t = 0 and it corrects nothing: what is left of its formula is Keras' formula, rounding included.

    A sparse gradient is taken as Keras on TensorFlow takes that of an embedding, one row for each time that a token
    occurs in the batch: g is the sum of the rows of a token, g^2 the sum of their squares
    (`lit_mnist.porting.KerasEmbedding` says more).

    Before that, keras/src/optimizers/base_optimizer.py clips the gradients, then decays the weights by
    `w -= w * weight_decay * lr`; after it, it updates the moving averages of the weights.

    The number of steps taken is `param_groups[i]["t"]`. It is saved with the state, there also as `step` of each
    parameter, where torch's optimizers look for it.

    Args:
        params: parameters, with or without their names, or parameter groups. A group may have its own value of what
            follows, as far as it is not said to be of all groups together.
        lr: learning rate, >= 0. A scheduler may change it between steps.
        betas: decay of m and of v, each in [0, 1).
        eps: epsilon hat, >= 0. Keras' default is 1e-7, torch's is 1e-8.
        amsgrad: divide by the largest v so far.
        weight_decay: share of a weight that is taken off at each step, times lr, >= 0; None for none. It is decoupled
            from the gradient, as in `torch.optim.AdamW` and not as in `torch.optim.Adam`.
        clipnorm: largest norm of a parameter's gradient, > 0; larger ones are scaled down. None for any. Where a device
            holds a share of the parameters (FSDP, ZeRO), norms are those of its share, and this is not what Keras does.
        clipvalue: largest absolute value of a gradient's element, > 0; None for any.
        global_clipnorm: largest norm of all gradients of all groups together, > 0; None for any.
        use_ema: keep moving averages of the weights, as `average` in the state; of all groups together.
        ema_momentum: share of the old average at each step, in [0, 1].
        ema_overwrite_frequency: after every so many steps the averages become the weights; None for never.
        fused: use torch's fused kernel where it computes what Keras does, on a CPU and in float64 on CUDA. For CUDA in
            float32 it takes a 1 - beta_2 that is 1.3e-5 too small (docs/findings.md, "Adam's constants on CUDA").
            Elsewhere, and with False, each operation of the formula is one call for all parameters.
        float32_constants: pass betas and weight_decay through float32 in a float64 model, as Keras on TensorFlow does.
            False is for what is compared with constants that keep their bits; in float32 it changes nothing.

    Raises:
        ValueError: if a number is out of its range, or two ways of clipping are asked for.
        TypeError: if an argument, of the optimizer or of a group, is another of Keras' or torch's Adam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        fused: bool = True,
        float32_constants: bool = True,
        **others: Any,
    ) -> None:
        for name in others:
            raise TypeError(_not_taken(name))
        if not (_is_number(ema_momentum) and 0 <= ema_momentum <= 1):
            raise ValueError(f"ema_momentum is {ema_momentum!r}, expected 0 to 1")
        frequency = ema_overwrite_frequency
        if frequency is not None and not (_is_number(frequency) and frequency >= 1):
            raise ValueError(f"ema_overwrite_frequency is {frequency!r}, expected at least 1, or None")
        self._not_decayed: set[Tensor] = set()
        self._names_not_decayed: list[str] = []
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "amsgrad": amsgrad,
            "weight_decay": weight_decay,
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "fused": fused,
            "float32_constants": float32_constants,
            "t": 0,
            "global_clipnorm": global_clipnorm,
            "use_ema": use_ema,
            "ema_momentum": ema_momentum,
            "ema_overwrite_frequency": ema_overwrite_frequency,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name in param_group:
            if name in OF_ALL_GROUPS:
                raise TypeError(f"a parameter group has {name}, which is of all groups together")
            if name not in {*self.defaults, "params", "param_names", "name", "initial_lr"}:
                raise TypeError(f"a parameter group has {name}: {_not_taken(name)}")
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])
        self._exclude_by_name(self.param_groups[-1], self._names_not_decayed)

    def exclude_from_weight_decay(self, var_list: Iterable[Tensor] = (), var_names: Iterable[str] = ()) -> None:
        """Leave out parameters from the decay of weights, as the method of this name of Keras' optimizers does.

        Args:
            var_list: parameters.
            var_names: regular expressions, of which one has to be found in a parameter's name; the optimizer has to be
                made of `module.named_parameters()` for it.

        Raises:
            ValueError: if `var_names` are given and the parameters have none.
        """
        self._not_decayed.update(var_list)
        self._names_not_decayed += var_names
        for group in self.param_groups:
            self._exclude_by_name(group, var_names)

    def _exclude_by_name(self, group: dict[str, Any], var_names: Iterable[str]) -> None:
        if not (pattern := "|".join(var_names)):
            return
        if "param_names" not in group:
            raise ValueError("the parameters have no names: make the optimizer of module.named_parameters()")
        named = zip(group["param_names"], group["params"], strict=True)
        self._not_decayed.update(parameter for name, parameter in named if re.search(pattern, name))

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("_not_decayed", "_names_not_decayed")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it there; nothing here would be it
        for group in self.param_groups:  # of an earlier release they have less in them
            group |= {name: value for name, value in self.defaults.items() if name not in group}
        for state_of_it in self.state.values():
            state_of_it.pop("step", None)  # which the groups count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned.

        Raises:
            ValueError: if it is of another optimizer, or of parameters of other shapes; nothing was changed.
        """
        if not all("t" in group for group in state_dict["param_groups"]):
            raise ValueError("the state of another optimizer: a KerasAdam's parameter groups have a number of steps, t")
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(indices, ours, strict=False):  # torch looks at their numbers
            for name, tensor in state_dict["state"].get(index, {}).items():
                # The kernel would read past the end of a smaller tensor.
                if name in STATE and tensor.shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
        super().load_state_dict(state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's optimizers do, with the number of steps beside the moments of each parameter."""
        state_dict = super().state_dict()
        steps = {index: float(group["t"]) for group in state_dict["param_groups"] for index in group["params"]}
        state = {index: {"step": torch.tensor(steps[index])} | own for index, own in state_dict["state"].items()}
        return state_dict | {"state": state}

    # Compiled, it would be compiled anew at each step, for a kernel that is one already.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the gradients anew and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: if a gradient is complex, sparse in another way than that of an embedding, or sparse where
                gradients are clipped; or if a parameter has got another shape since the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for group in self.param_groups:
            clipped = any(group[name] is not None for name in CLIPPING)
            for parameter in group["params"]:
                if parameter.grad is not None and taken(parameter.grad).is_sparse and clipped:
                    raise RuntimeError("the rows of an embedding's gradient cannot be clipped; use nn.Embedding")
        if not gradients:
            return loss  # no step, as in Keras
        scale = self._global_scale(gradients)
        for group in self.param_groups:
            group["t"] += 1
            self._decay(group)
            dense = [p for p in group["params"] if p.grad is not None and not p.grad.is_sparse]
            for dtype in {parameter.dtype for parameter in dense}:
                self._update([p for p in dense if p.dtype == dtype], group, scale)
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    # torch's kernel would square the sum of a token's rows.
                    square = squared(parameter.grad)
                    self._update_by_formula([parameter], [parameter.grad.to_dense()], [square], group)
            if group["use_ema"]:
                self._update_averages(group)
        return loss

    @torch.no_grad()
    def overwrite_with_averages(self) -> None:
        """Set the weights to their moving averages, as Keras' `fit` does after the last step with `use_ema`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "average" in self.state[parameter]:
                    parameter.copy_(self.state[parameter]["average"])

    def _decay(self, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            # As keras.ops.cast(0.004, "float64"), through float32.
            rounded = group["float32_constants"]
            decay = float(np.float32(group["weight_decay"])) if rounded else group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is not None and parameter not in self._not_decayed:
                    parameter.sub_(parameter * decay * group["lr"])

    def _start(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a parameter, made of zeros before its first step."""
        state = self.state[parameter]
        for name in STATE[: 3 if group["amsgrad"] else 2]:
            if name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            elif state[name].shape != parameter.shape:  # of which the kernel would read what lies behind its end
                was, now = list(state[name].shape), list(parameter.shape)
                raise RuntimeError(f"a parameter was {was} and is {now} now; make a new optimizer for it")
        return state

    def _alpha(self, parameter: Tensor, group: dict[str, Any]) -> float:
        return keras_alpha(group["lr"], group["t"], group["betas"], parameter.dtype, group["float32_constants"])

    def _update(self, parameters: list[Tensor], group: dict[str, Any], scale: Tensor | None) -> None:
        """Update parameters of one group and dtype, all of which have a dense gradient."""
        gradients = [_clipped(parameter.grad, group, scale) for parameter in parameters]  # type: ignore[arg-type]
        states = [self._start(parameter, group) for parameter in parameters]
        tensors = [*parameters, *gradients, *(state[name] for state in states for name in state if name in STATE)]
        if not (group["fused"] and has_exact_kernel(parameters) and _in_one_layout(tensors)):
            squares = torch._foreach_mul(gradients, gradients)
            self._update_by_formula(parameters, gradients, squares, group)
            return
        infinity = {device: torch.full((), math.inf, device=device) for device in {p.device for p in parameters}}
        beta1, beta2 = group["betas"]
        tensors_of_each = (
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [infinity[parameter.device] for parameter in parameters],
        )
        options = {
            "amsgrad": group["amsgrad"],
            "beta1": beta1,
            "beta2": beta2,
            "lr": self._alpha(parameters[0], group),
            "weight_decay": 0,
            "eps": group["eps"],
            "maximize": False,
        }
        if len(infinity) == 1 and has_kernel():
            torch._fused_adam_(*tensors_of_each, **options)
        else:
            adam(*tensors_of_each, foreach=False, fused=True, **options)

    def _update_by_formula(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        squares: tuple[Tensor, ...] | list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update parameters of one group and dtype operation by operation, each done for all of them at once."""
        states = [self._start(parameter, group) for parameter in parameters]
        m, v = ([state[name] for state in states] for name in STATE[:2])
        torch._foreach_lerp_(m, gradients, 1 - group["betas"][0])  # m += (g - m) * (1 - beta_1)
        torch._foreach_lerp_(v, squares, 1 - group["betas"][1])
        if group["amsgrad"]:
            largest = [state["max_exp_avg_sq"] for state in states]
            torch._foreach_maximum_(largest, v)
            v = largest
        divisors = torch._foreach_sqrt(v)
        torch._foreach_add_(divisors, group["eps"])
        torch._foreach_addcdiv_(parameters, m, divisors, -self._alpha(parameters[0], group))

    def _update_averages(self, group: dict[str, Any]) -> None:
        momentum = group["ema_momentum"]
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue  # frozen, and no variable of Keras' optimizer
            state = self.state[parameter]
            if "average" in state:
                state["average"].mul_(momentum).add_(parameter * (1 - momentum))
            else:
                state["average"] = parameter.clone()
            if group["ema_overwrite_frequency"] and group["t"] % group["ema_overwrite_frequency"] == 0:
                parameter.copy_(state["average"])

    def _global_scale(self, gradients: list[Tensor]) -> Tensor | None:
        """Return what all gradients are multiplied with, [], so that their common norm is `global_clipnorm` at most."""
        if (limit := self.param_groups[0]["global_clipnorm"]) is None:
            return None
        squares = torch.stack([(gradient**2).sum().to(gradients[0].device) for gradient in gradients])
        norm = squares.sum().sqrt()
        # Of a norm that is not finite it is NaN.
        return limit * torch.minimum(1 / norm, torch.full_like(norm, 1 / limit)) + (norm - norm)


class KerasAdamW(KerasAdam):
    """Update parameters as `keras.optimizers.AdamW` does: Adam that decays weights by 0.004 unless told otherwise.

    Biases and the weights of normalisation are usually left out: `exclude_from_weight_decay(var_names=["bias"])`.

    Args:
        params: as of `KerasAdam`.
        lr: learning rate, >= 0.
        weight_decay: share of a weight that is taken off at each step, times lr, >= 0.
        others: as of `KerasAdam`, by name.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.004, **others: Any) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **others)


def has_exact_kernel(parameters: list[Tensor]) -> bool:
    """Say whether torch's fused kernel for these parameters' devices and dtype takes 1 - beta_2 as Keras does."""
    kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
    return all(device == "cpu" or (device, dtype) == ("cuda", torch.float64) for device, dtype in kinds)


@cache
def has_kernel() -> bool:
    """Say whether torch's fused kernel is the one that is known here."""
    return hasattr(torch, "_fused_adam_") and str(torch.ops.aten._fused_adam_.default._schema) == KERNEL


def keras_alpha(
    learning_rate: float, t: int, betas: tuple[float, float], dtype: torch.dtype, float32_constants: bool = True
) -> float:
    """Return the factor of Keras' update at step t, rounded as Keras on TensorFlow rounds it.

    All of it is computed in the variable's precision. The betas pass through float32 on the way, in float64 too,
    because `keras.ops.cast(0.999, "float64")` makes a float32 tensor first: there 1 - beta_2 is 0.00099998712.

    Args:
        learning_rate: > 0.
        t: number of the step, from 1.
        betas: decay of m and of v.
        dtype: dtype of the parameters; alpha is computed in float64 for float64, else in float32.
        float32_constants: whether the betas pass through float32 in float64, too.
    """
    real = np.float64 if dtype == torch.float64 else np.float32
    constant = np.float32 if float32_constants else real
    beta_1_power, beta_2_power = (real(constant(beta)) ** real(t) for beta in betas)
    return float(real(learning_rate) * np.sqrt(real(1) - beta_2_power) / (real(1) - beta_1_power))


def taken(gradient: Tensor) -> Tensor:
    """Return a gradient.

    Raises:
        RuntimeError: if it is complex, or sparse in another way than that of an embedding.
    """
    if gradient.is_complex() or (gradient.is_sparse and gradient.sparse_dim() != 1):
        raise RuntimeError(
            f"expected real gradients, dense or of an embedding; got {gradient.layout}, {gradient.dtype}"
        )
    return gradient


def squared(gradient: Tensor) -> Tensor:
    """Return the squares of a gradient, dense: of a sparse one each row by itself, and then their sum."""
    if not gradient.is_sparse:
        return gradient.square()
    squares = gradient.new_zeros(gradient.shape, layout=torch.strided)
    # Not `indices()`, which would add up the rows of a token.
    return squares.index_add_(0, gradient._indices()[0], gradient._values().square())


def _clipped(gradient: Tensor, group: dict[str, Any], scale: Tensor | None) -> Tensor:
    if scale is not None:
        return gradient * scale.to(gradient.device)
    if group["clipnorm"] is not None:
        norm = (gradient**2).sum().sqrt()
        return gradient * group["clipnorm"] / norm.clamp(min=group["clipnorm"])
    if group["clipvalue"] is not None:
        return gradient.clamp(-group["clipvalue"], group["clipvalue"])
    return gradient


def _in_one_layout(tensors: list[Tensor]) -> bool:
    """Say whether torch's fused kernel, which goes through memory without a look at strides, may take these."""
    return all(tensor.is_contiguous() for tensor in tensors) or all(
        tensor.is_contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.is_contiguous()
        for tensor in tensors
    )


def _check_group(group: dict[str, Any]) -> None:
    """Raise a ValueError that names what is out of its range."""
    group |= {"weight_decay": group["weight_decay"] or 0, "amsgrad": bool(group["amsgrad"])}  # as torch's have them
    for name in ("lr", "eps", "weight_decay"):
        if not (_is_number(group[name]) and group[name] >= 0):
            raise ValueError(f"{name} is {group[name]!r}, expected 0 or more")
        group[name] = float(group[name])
    betas = group["betas"]
    two = isinstance(betas, tuple | list) and len(betas) == 2
    if not (two and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)):
        raise ValueError(f"betas are {group['betas']}, expected two numbers from 0 to less than 1")
    asked = {name: group[name] for name in CLIPPING if group[name] is not None}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are given, expected one of them at most")
    for name, value in asked.items():
        if not (_is_number(value) and value > 0):
            raise ValueError(f"{name} is {value!r}, expected more than 0, or None")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | Tensor)  # not "1e-7", which YAML takes for a text


def _not_taken(name: str) -> str:
    if name in IN_TORCH:
        return f"Keras' {name} is called {IN_TORCH[name]} here"
    return f"KerasAdam has no {name}"

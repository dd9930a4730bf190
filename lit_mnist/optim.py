"""Adam with the arithmetic of Keras."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class KerasAdam(torch.optim.Adam):
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

    The number of steps taken is `param_groups[i]["t"]`; it is saved and loaded with the state.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, >= 0. A scheduler may change it between steps.
        betas: decay of m and of v, each in [0, 1).
        eps: epsilon hat, >= 0. Keras' default is 1e-7, torch's is 1e-8.
        fused: use torch's fused kernel (CPU, CUDA and MPS have one).

    Raises:
        ValueError: if one of the numbers is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        fused: bool = True,
    ) -> None:
        super().__init__(params, lr=float(lr), betas=betas, eps=eps, fused=fused)
        # Under 16-bit mixed precision the kernel could skip a step that overflowed without our counter knowing;
        # without this mark, torch's GradScaler does not call step() for such a step at all.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group.setdefault("t", 0)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not all("t" in group for group in self.param_groups):
            raise ValueError("the state of another optimizer: a KerasAdam's parameter groups have a number of steps, t")
        for parameter, state_of_it in self.state.items():  # torch's kernel would read past the end of a smaller tensor
            for name in ("exp_avg", "exp_avg_sq"):
                if state_of_it[name].shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(state_of_it[name].shape)}, expected {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the gradients anew and returns the loss; optional.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        learning_rates = [group["lr"] for group in self.param_groups]
        for group in filter(lambda group: group["params"], self.param_groups):
            group["t"] += 1
            group["lr"] = keras_alpha(group["lr"], group["t"], group["betas"], group["params"][0].dtype)
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = _initial_state(parameter, on_device=group["fused"])
        try:
            super().step()
        finally:
            for group, learning_rate in zip(self.param_groups, learning_rates, strict=True):
                group["lr"] = learning_rate
        return loss


def keras_alpha(learning_rate: float, t: int, betas: tuple[float, float], dtype: torch.dtype) -> float:
    """Return the factor of Keras' update at step t, rounded as Keras on TensorFlow rounds it.

    All of it is computed in the variable's precision. The betas pass through float32 on the way, in float64 too,
    because `keras.ops.cast(0.999, "float64")` makes a float32 tensor first: there 1 - beta_2 is 0.00099998712.

    Args:
        learning_rate: > 0.
        t: number of the step, from 1.
        betas: decay of m and of v.
        dtype: dtype of the parameters; alpha is computed in float64 for float64, else in float32.
    """
    real = np.float64 if dtype == torch.float64 else np.float32
    beta_1_power, beta_2_power = (real(np.float32(beta)) ** real(t) for beta in betas)
    return float(real(learning_rate) * np.sqrt(real(1) - beta_2_power) / (real(1) - beta_1_power))


def _initial_state(parameter: Tensor, on_device: bool) -> dict[str, Tensor]:
    # What torch.optim.Adam would make at its first step, but for the step number.
    return {
        "step": torch.full((), math.inf, device=parameter.device if on_device else "cpu"),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }

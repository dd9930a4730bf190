"""RMSprop, SGD and Adagrad with the arithmetic of Keras."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_mnist.optim import squared, taken

IN_TORCH = {"learning_rate": "lr", "epsilon": "eps"}  # by Keras' name


class KerasOptimizer(torch.optim.Optimizer):
    """What the optimizers below share: their steps, and what they refuse.

    A sparse gradient is taken as Keras on TensorFlow takes that of an embedding: one row for each time that a token
    occurs in the batch. `KerasEmbedding` says what that changes.

    Attributes:
        keras_slots: names in the state of a parameter, by the names of Keras' optimizer variables.
    """

    keras_slots: ClassVar[dict[str, str]] = {}

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], others: dict[str, Any]) -> None:
        self._refuse(others)
        super().__init__(params, defaults | {"lr": float(defaults["lr"])})

    def _refuse(self, names: Iterable[str]) -> None:
        for name in names:
            if name in IN_TORCH:
                raise TypeError(f"Keras' {name} is called {IN_TORCH[name]} here")
            raise TypeError(f"{type(self).__name__} has no {name}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._refuse(param_group.keys() - {*self.defaults, "params", "param_names", "name", "initial_lr"})
        for name, value in (self.defaults | param_group).items():
            if name in ("lr", "eps", "initial_accumulator_value") and not value >= 0:
                raise ValueError(f"{name} is {value}, expected 0 or more")
            if name in ("momentum", "rho") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the gradients anew and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: if a gradient is complex, or sparse in another way than that of an embedding.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, taken(parameter.grad), group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError  # each has its own

    def _slot(self, parameter: Tensor, name: str, start: float = 0.0) -> Tensor:
        """Return a tensor of the state, in the shape of its parameter, full of `start` before the first step."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.full_like(parameter, start)
        return state[name]


class KerasSGD(KerasOptimizer):
    """Update parameters as `keras.optimizers.SGD` does.

    Source: keras/src/optimizers/sgd.py, which computes

        m = momentum * m - lr * g
        w += m                          without Nesterov
        w += momentum * m - lr * g      with Nesterov

    torch keeps `buf = momentum * buf + g` and subtracts lr * buf: today's rate times all gradients so far, each of
    which Keras multiplies by the rate of its own step. With one rate for all steps the two are the same; with a
    schedule they are two optimizers.

    Keras on TensorFlow rounds `momentum` to float32; not here.

    Args:
        params: parameters, with or without their names, or parameter groups.
        lr: learning rate, >= 0. A scheduler may change it between steps.
        momentum: share of the old step in the new one, in [0, 1]; 0 for none.
        nesterov: look one step ahead.
        others: any other argument of Keras' or torch's SGD is refused by name, clipping and weight decay too.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if there is no such argument.
    """

    keras_slots: ClassVar[dict[str, str]] = {"momentum": "momentum"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov}, others)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        step = gradient.to_dense() * group["lr"]
        if group["momentum"] == 0:
            parameter.sub_(step)
            return
        momentum = self._slot(parameter, "momentum").mul_(group["momentum"]).sub_(step)
        parameter.add_(momentum * group["momentum"] - step if group["nesterov"] else momentum)


class KerasRMSprop(KerasOptimizer):
    """Update parameters as `keras.optimizers.RMSprop` does.

    Source: keras/src/optimizers/rmsprop.py, which computes

        v = rho * v + (1 - rho) * g^2
        a = rho * a + (1 - rho) * g                     if centered, else a = 0
        m = momentum * m + lr * g / sqrt(v - a^2 + eps)
        w -= m

    torch adds eps to the root, lr * g / (sqrt(v) + eps). Under the root 1e-7 counts as 3e-4 does outside of it: where
    gradients are small, the two take steps of quite another size. torch's alpha, 0.99, is another default than Keras'
    rho, and it multiplies m by today's learning rate where Keras adds up steps.

    Keras on TensorFlow rounds none of these constants.

    Args:
        params: parameters, with or without their names, or parameter groups.
        lr: learning rate, >= 0. A scheduler may change it between steps.
        rho: share of the old average of squares in the new one, in [0, 1]; torch's alpha.
        momentum: share of the old step in the new one, in [0, 1]; 0 for none.
        eps: added under the root, >= 0.
        centered: divide by the standard deviation of the gradient, not by its root mean square.
        others: any other argument of Keras' or torch's RMSprop is refused by name, clipping and weight decay too.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if there is no such argument.
    """

    keras_slots: ClassVar[dict[str, str]] = {
        "velocity": "square_avg",
        "momentum": "momentum",
        "average_gradient": "grad_avg",
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1e-7,
        centered: bool = False,
        **others: Any,
    ) -> None:
        defaults = {"lr": lr, "rho": rho, "momentum": momentum, "eps": eps, "centered": centered}
        super().__init__(params, defaults, others)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rho, dense = group["rho"], gradient.to_dense()
        square = self._slot(parameter, "square_avg").mul_(rho).add_(squared(gradient), alpha=1 - rho)
        if group["centered"]:
            square = square - self._slot(parameter, "grad_avg").mul_(rho).add_(dense, alpha=1 - rho).square()
        step = dense * group["lr"] / (square + group["eps"]).sqrt()
        if group["momentum"] > 0:
            step = self._slot(parameter, "momentum").mul_(group["momentum"]).add_(step)
        parameter.sub_(step)


class KerasAdagrad(KerasOptimizer):
    """Update parameters as `keras.optimizers.Adagrad` does.

    Source: keras/src/optimizers/adagrad.py, which computes

        s += g^2                        from s = 0.1 on
        w -= lr * g / sqrt(s + eps)

    torch starts from s = 0 and adds eps to the root, 1e-10 by default.

    Keras on TensorFlow rounds the start of s to float32; not here.

    Args:
        params: parameters, with or without their names, or parameter groups.
        lr: learning rate, >= 0. A scheduler may change it between steps.
        initial_accumulator_value: of s, >= 0.
        eps: added under the root, >= 0.
        others: any other argument of Keras' or torch's Adagrad is refused by name, clipping and weight decay too.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if there is no such argument.
    """

    keras_slots: ClassVar[dict[str, str]] = {"accumulator": "sum"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.001,
        initial_accumulator_value: float = 0.1,
        eps: float = 1e-7,
        **others: Any,
    ) -> None:
        defaults = {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        super().__init__(params, defaults, others)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        total = self._slot(parameter, "sum", group["initial_accumulator_value"]).add_(squared(gradient))
        parameter.sub_(gradient.to_dense() * group["lr"] / (total + group["eps"]).sqrt())

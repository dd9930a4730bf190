"""The learning rates of `keras.optimizers.schedules` as torch's schedulers.

A schedule of Keras is a function of the number of steps taken so far, so its port has to be stepped with each batch. In
Lightning that is `"interval": "step"`; without it Lightning steps a scheduler once an epoch:

    def configure_optimizers(self):
        optimizer = KerasSGD(self.parameters(), lr=0.1)
        scheduler = ExponentialDecay(optimizer, decay_steps=100, decay_rate=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

Keras' `initial_learning_rate` is the optimizer's lr, of each parameter group its own.

Source: keras/src/optimizers/schedules/learning_rate_schedule.py. Keras on TensorFlow computes all of a schedule in
float32, in a float64 model too, because it begins with a tensor made of a Python number; here it is in float64.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Schedule(LRScheduler):
    """A learning rate that is a function of the number of steps taken so far."""

    def rate(self, initial: float, step: int) -> float:
        """Return the learning rate after `step` steps, from what the optimizer was made with."""
        raise NotImplementedError  # each has its own

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch's also has tensors, which we do not make
        return [self.rate(float(initial), self.last_epoch) for initial in self.base_lrs]


class _OfShares(Schedule):
    """One of the share `step / decay_steps`, which is rounded down with `staircase`."""

    def __init__(self, optimizer: Optimizer, decay_steps: int, decay_rate: float, staircase: bool = False) -> None:
        self.decay_steps, self.decay_rate, self.staircase = _positive(decay_steps), decay_rate, staircase
        super().__init__(optimizer)

    def share(self, step: int) -> float:
        return step // self.decay_steps if self.staircase else step / self.decay_steps


class ExponentialDecay(_OfShares):
    """Multiply the learning rate by `decay_rate` every `decay_steps` steps: `lr * decay_rate^(step / decay_steps)`.

    Args:
        optimizer: whose learning rate it is.
        decay_steps: steps, > 0.
        decay_rate: factor.
        staircase: at once, after every `decay_steps` steps, and not a little with each.

    Raises:
        ValueError: if `decay_steps` is not positive.
    """

    def rate(self, initial: float, step: int) -> float:
        return initial * self.decay_rate ** self.share(step)


class InverseTimeDecay(_OfShares):
    """Divide the learning rate: `lr / (1 + decay_rate * step / decay_steps)`.

    Args:
        optimizer: whose learning rate it is.
        decay_steps: steps, > 0.
        decay_rate: what is added to the divisor every `decay_steps` steps.
        staircase: at once, after every `decay_steps` steps, and not a little with each.

    Raises:
        ValueError: if `decay_steps` is not positive.
    """

    def rate(self, initial: float, step: int) -> float:
        return initial / (1 + self.decay_rate * self.share(step))


class PolynomialDecay(Schedule):
    """Go from the learning rate to an end, as `(1 - step / decay_steps)^power` does from one to zero.

    Args:
        optimizer: whose learning rate it is.
        decay_steps: steps to the end, > 0.
        end_learning_rate: at the end.
        power: 1 for a straight line.
        cycle: at the end, begin anew with twice, thrice ... the number of steps.

    Raises:
        ValueError: if `decay_steps` is not positive.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
    ) -> None:
        self.decay_steps, self.end, self.power, self.cycle = _positive(decay_steps), end_learning_rate, power, cycle
        super().__init__(optimizer)

    def rate(self, initial: float, step: int) -> float:
        steps = self.decay_steps * (max(1, math.ceil(step / self.decay_steps)) if self.cycle else 1)
        return (initial - self.end) * (1 - min(step, steps) / steps) ** self.power + self.end


class PiecewiseConstantDecay(Schedule):
    """Set the learning rate to one value after the other, of all parameter groups and whatever they were made with.

    Args:
        optimizer: whose learning rate it is.
        boundaries: rising numbers of steps [K]. The step of this number, counted from 0, has the old value still.
        values: learning rates [K + 1].

    Raises:
        ValueError: if there is not one value more than boundaries.
    """

    def __init__(self, optimizer: Optimizer, boundaries: Sequence[int], values: Sequence[float]) -> None:
        if len(values) != len(boundaries) + 1:
            raise ValueError(f"{len(boundaries)} boundaries and {len(values)} values, expected one value more")
        self.boundaries, self.values = list(boundaries), list(values)
        super().__init__(optimizer)

    def rate(self, initial: float, step: int) -> float:
        return self.values[bisect_left(self.boundaries, step)]


class CosineDecay(Schedule):
    """Go from the learning rate to `alpha` times it along half a cosine, or first up to a target on a straight line.

    Args:
        optimizer: whose learning rate it is.
        decay_steps: steps from there to the end, > 0.
        alpha: share that is left at the end.
        warmup_target: from which the cosine goes down; None for no warm-up.
        warmup_steps: steps to the target; they come before the `decay_steps`.

    Raises:
        ValueError: if `decay_steps` is not positive.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay_steps: int,
        alpha: float = 0.0,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.decay_steps, self.alpha = _positive(decay_steps), alpha
        self.warmup_target, self.warmup_steps = warmup_target, warmup_steps
        super().__init__(optimizer)

    def rate(self, initial: float, step: int) -> float:
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return (self.warmup_target - initial) * (step / self.warmup_steps) + initial
            initial, step = self.warmup_target, step - self.warmup_steps
        return initial * _cosine(min(step, self.decay_steps) / self.decay_steps, self.alpha)


class CosineDecayRestarts(Schedule):
    """Go down along half a cosine again and again, each time longer and from less.

    Source of the method: Loshchilov and Hutter (2017), SGDR.

    Args:
        optimizer: whose learning rate it is.
        first_decay_steps: steps of the first time, > 0.
        t_mul: how much longer each time takes than the one before, >= 1.
        m_mul: what the learning rate is multiplied by each time.
        alpha: share that is left at the end of a time.

    Raises:
        ValueError: if `first_decay_steps` is not positive, or `t_mul` is less than 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
    ) -> None:
        if not t_mul >= 1:
            raise ValueError(f"t_mul is {t_mul}, expected 1 or more")
        self.first_decay_steps, self.t_mul, self.m_mul, self.alpha = _positive(first_decay_steps), t_mul, m_mul, alpha
        super().__init__(optimizer)

    def rate(self, initial: float, step: int) -> float:
        share, restarts = step / self.first_decay_steps, 0
        # Each time by itself: a logarithm, as Keras takes it, may round to the wrong side of a restart.
        while share >= 1:
            share = (share - 1) / self.t_mul
            restarts += 1
        return initial * _cosine(share, self.alpha, self.m_mul**restarts)


def _positive(steps: int) -> int:
    if not steps > 0:
        raise ValueError(f"the number of steps is {steps}, expected more than 0")
    return steps


def _cosine(share: float, alpha: float, height: float = 1.0) -> float:
    return (1 - alpha) * (0.5 * height * (1 + math.cos(math.pi * share))) + alpha

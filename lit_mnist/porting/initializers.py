"""Start weights as Keras draws them, in the style of `torch.nn.init`: they fill a tensor in torch's layout in place.

Source: keras/src/initializers/random_initializers.py.
"""

import math

import torch
from torch import Tensor, nn

# Standard deviation of a standard normal distribution that is cut off at +-2.
CUT_OFF = 0.87962566103423978
WITH_KERNEL = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@torch.no_grad()
def variance_scaling_(
    weight: Tensor, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"
) -> Tensor:
    """Fill a weight [O, I, ...] so that its variance is `scale / n`, as `keras.initializers.VarianceScaling` does.

    Fans are I and O times the size of a kernel, here as in Keras, but for a depthwise convolution: for Keras it has
    H * W * I in and H * W * multiplier out, in torch's layout H * W in and H * W * I * multiplier out.

    Args:
        weight: [O, I] or [O, I, ...], of a linear layer or a convolution; or [I].
        scale: > 0.
        mode: what n is: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal", "untruncated_normal" or "uniform".

    Raises:
        ValueError: if there is no such mode or distribution.
    """
    kernel = weight[0, 0].numel() if weight.ndim > 2 else 1
    fan_in, fan_out = (weight.shape[1] * kernel, weight.shape[0] * kernel) if weight.ndim > 1 else (len(weight),) * 2
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(fans)}")
    variance = scale / max(1.0, fans[mode])
    if distribution == "truncated_normal":
        return truncated_normal_(weight, math.sqrt(variance) / CUT_OFF)
    if distribution == "untruncated_normal":
        return nn.init.normal_(weight, std=math.sqrt(variance))
    if distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return nn.init.uniform_(weight, -limit, limit)
    raise ValueError(f"distribution is {distribution!r}, expected truncated_normal, untruncated_normal or uniform")


def truncated_normal_(weight: Tensor, std: float = 0.05) -> Tensor:
    """Draw from a normal distribution that is cut off at two standard deviations, as Keras' `TruncatedNormal` does.

    `torch.nn.init.trunc_normal_` cuts off at -2 and 2, whatever the standard deviation.
    """
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def glorot_uniform_(weight: Tensor) -> Tensor:
    """Draw uniformly from +-sqrt(6 / (fan_in + fan_out)), as most layers of Keras do; `nn.init.xavier_uniform_`."""
    return variance_scaling_(weight, 1.0, "fan_avg", "uniform")


def glorot_normal_(weight: Tensor) -> Tensor:
    """Draw with variance 2 / (fan_in + fan_out), cut off; `nn.init.xavier_normal_` does not cut off."""
    return variance_scaling_(weight, 1.0, "fan_avg", "truncated_normal")


def he_uniform_(weight: Tensor) -> Tensor:
    """Draw uniformly from +-sqrt(6 / fan_in); `nn.init.kaiming_uniform_` with `nonlinearity="relu"`."""
    return variance_scaling_(weight, 2.0, "fan_in", "uniform")


def he_normal_(weight: Tensor) -> Tensor:
    """Draw with variance 2 / fan_in, cut off; `nn.init.kaiming_normal_` does not cut off."""
    return variance_scaling_(weight, 2.0, "fan_in", "truncated_normal")


def lecun_uniform_(weight: Tensor) -> Tensor:
    """Draw uniformly from +-sqrt(3 / fan_in)."""
    return variance_scaling_(weight, 1.0, "fan_in", "uniform")


def lecun_normal_(weight: Tensor) -> Tensor:
    """Draw with variance 1 / fan_in, cut off."""
    return variance_scaling_(weight, 1.0, "fan_in", "truncated_normal")


def keras_defaults_(module: nn.Module) -> None:
    """Draw the weights of one layer as the Keras layer of its kind does by default: `model.apply(keras_defaults_)`.

    Linear layers and convolutions get Glorot uniform kernels and biases of zero, embeddings +-0.05, PReLU zero. A
    convolution with as many groups as channels is taken for the depthwise one of Keras, also of a `SeparableConv2D`.
    `KerasLSTM` and `KerasGRU` are made with theirs; other layers are left as they are.
    """
    if isinstance(module, WITH_KERNEL):
        weight = module.weight.detach()
        if not isinstance(module, nn.Linear) and module.groups == module.in_channels > 1:
            weight = weight.view(-1, module.in_channels, *weight.shape[2:])  # for Keras' fans
        glorot_uniform_(weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -0.05, 0.05)
    elif isinstance(module, nn.PReLU):
        nn.init.zeros_(module.weight)

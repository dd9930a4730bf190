"""`padding="same"` with strides: TensorFlow's rule, uneven where it has to be."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, ...]


def same_padding(length: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Return how much TensorFlow pads one dimension before and after it for `padding="same"`.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn, "Notes on padding". The output has
    ceil(length / stride) elements, and as little is padded as that takes; if it is an odd number, the greater half goes
    *after*. With a kernel of 3, a stride of 2 and an even length that is nothing before and one after; torch's
    `padding=1` takes one before and looks at other pixels.
    """
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + (kernel_size - 1) * dilation + 1 - length, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel_size: Size, stride: Size = 1, dilation: Size = 1, value: float = 0.0) -> Tensor:
    """Pad the dimensions of [N, C, ...] behind the channels with `value`, as TensorFlow does for `padding="same"`."""
    dimensions = x.ndim - 2
    sizes = (_each(size, dimensions) for size in (kernel_size, stride, dilation))
    pads = [same_padding(*each) for each in zip(x.shape[2:], *sizes, strict=True)]
    # torch's pad wants the last dimension first.
    return F.pad(x, [amount for pad in reversed(pads) for amount in pad], value=value)


class SamePad2d(nn.Module):
    """Pad images [N, C, H, W] as `padding="same"` does in Keras, for a convolution or pooling of what is padded.

    Args:
        kernel_size: of what follows, H and W or both.
        stride: of what follows.
        dilation: of what follows.
        value: to pad with.
    """

    def __init__(self, kernel_size: Size, stride: Size = 1, dilation: Size = 1, value: float = 0.0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation, self.value = kernel_size, stride, dilation, value

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, self.kernel_size, self.stride, self.dilation, self.value)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, dilation={self.dilation}, value={self.value}"


class SamePad1d(SamePad2d):
    """Pad sequences [N, C, T], as `SamePad2d` pads images."""


class _SameConv(nn.Module):
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, **others: Any) -> None:
        for name in ("padding", "padding_mode"):
            if name in others:
                raise TypeError(f"{type(self).__name__} has no {name}: it pads as TensorFlow does")
        super().__init__(in_channels, out_channels, kernel_size, stride, **others)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride, self.dilation))


class SameConv2d(_SameConv, nn.Conv2d):
    """Convolve images [N, C, H, W] to [N, O, ceil(H / stride), ceil(W / stride)], as `Conv2D(padding="same")` does.

    Without a stride `nn.Conv2d(padding="same")` is the same; with one torch has none.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: as of `nn.Conv2d`.
        stride: as of `nn.Conv2d`.
        others: as of `nn.Conv2d`, by name, but for `padding` and `padding_mode`.

    Raises:
        TypeError: if a padding is given.
    """


class SameConv1d(_SameConv, nn.Conv1d):
    """Convolve sequences [N, C, T] to [N, O, ceil(T / stride)], as `Conv1D(padding="same")` does; see `SameConv2d`."""


class _Pool(nn.Module):
    def __init__(self, kernel_size: Size, stride: Size | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}"


class SameMaxPool2d(_Pool):
    """Take the maximum of windows of images, [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)].

    As `MaxPooling2D(padding="same")`: what is padded is never the maximum.

    Args:
        kernel_size: of the window, H and W or both.
        stride: of the windows; that of `kernel_size` unless given.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_same(x, self.kernel_size, self.stride, value=-torch.inf)
        pool = F.max_pool1d if x.ndim == 3 else F.max_pool2d
        return pool(padded, self.kernel_size, self.stride)


class SameMaxPool1d(SameMaxPool2d):
    """Take the maximum of windows of sequences, [N, C, T] to [N, C, ceil(T / stride)], as `SameMaxPool2d` does."""


class SameAvgPool2d(_Pool):
    """Take the mean of windows of images, [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)].

    As `AveragePooling2D(padding="same")`: of the pixels that there are, without what is padded.

    Args:
        kernel_size: of the window, H and W or both.
        stride: of the windows; that of `kernel_size` unless given.
    """

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool1d if x.ndim == 3 else F.avg_pool2d
        ones = torch.ones_like(x[:1, :1])
        means, filled = (
            pool(pad_same(y, self.kernel_size, self.stride), self.kernel_size, self.stride) for y in (x, ones)
        )
        return means / filled


class SameAvgPool1d(SameAvgPool2d):
    """Take the mean of windows of sequences, [N, C, T] to [N, C, ceil(T / stride)], as `SameAvgPool2d` does."""


def _each(size: Size, dimensions: int) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,) * dimensions

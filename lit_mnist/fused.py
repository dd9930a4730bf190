"""Convolution, ReLU and pooling of the documented model as one matrix product: a third of their time on a CPU.

A pixel of the pooled image is the largest of four outputs of the convolution, whose 3 x 3 windows lie within one 4 x 4
patch of the image, each shifted by a row or a column:

    pooled[n, c, y, x] = relu(max_ij sum_rs kernel[c, r, s] * patch[n, i + r, j + s, y, x] + bias[c])

with shifts i and j in {0, 1}, r and s in {0, 1, 2}, and the patches two pixels apart in the padded image. With each
shift's kernel written into a 4 x 4 field of zeros, all sums are one product of matrices,

    [4 shifts x C, 16] @ [N, 16, H/2 * W/2],

and the maximum over shifts is one over blocks of its rows. Three steps have another order than in the layers:

- ReLU comes after the maximum. Both are monotone; and where the maximum is not above zero, no gradient passes.
- The bias comes after the maximum. Adding it is monotone, so that the values are the same to the bit for the same sums;
  but sums that only the rounding of the bias makes equal have another winner here, the one that is larger.
- Of equal sums the first wins and takes the gradient, in the order (0, 0), (0, 1), (1, 0), (1, 1): as in the layers.

Backwards, the gradient of a pooled pixel goes to the winner's row of the product, times its patch; the matrix that
wrote the kernel into the fields folds them back.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

# Whether `torch.autograd.grad(..., is_grads_batched=True)` asks; there is no public way to tell.
_is_batch_of_gradients = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda gradient: False)

SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # rows and columns down and to the right, in the order in which pooling looks


def conv_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve images with 3 x 3 kernels (padding "same"), apply ReLU, and pool 2 x 2.

    No gradient for the images. A second derivative, or many at once, is taken through the layers.

    Args:
        images: [N, 1, H, W], H and W even.
        weight: of the convolution, [C, 1, 3, 3].
        bias: [C].

    Returns:
        The pooled images, [N, C, H/2, W/2].
    """
    if torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad):
        return _ConvReLUPool.apply(images, weight, bias)
    largest = _sums(_patches(images), weight).amax(dim=1)  # of the four shifts, [N, C, H/2 * W/2]
    return largest.add_(bias.unsqueeze(1)).relu_().view(_shape(images, bias))


def fits(images: Tensor, conv: nn.Module, pool: nn.Module) -> bool:
    """Say whether `conv_relu_pool` may stand for two layers with ReLU between them, and nobody would miss them.

    On other devices than a CPU, in 16 bits, and for whoever traces, transforms or watches the layers, it may not.
    """
    if type(images) is not Tensor or is_traced():  # a proxy of torch.fx, for one
        return False
    if not (type(conv) is nn.Conv2d and type(pool) is nn.MaxPool2d and _are_as_documented(conv, pool)):
        return False
    tensors = (images, conv.weight, conv.bias)
    return (
        type(conv.weight) is type(conv.bias) is nn.Parameter
        and all(tensor.device.type == "cpu" and tensor.dtype == images.dtype for tensor in tensors)  # type: ignore[union-attr]
        and images.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and images.ndim == 4
        and images.shape[1] == 1
        and images.shape[2] % 2 == images.shape[3] % 2 == 0
        and not _are_watched(conv, pool)
        and not images.requires_grad
        and torch.autograd.forward_ad.unpack_dual(images).tangent is None  # type: ignore[no-untyped-call]
    )


def is_traced() -> bool:
    """Say whether torch is compiling, tracing or transforming what is computed: values must not decide anything."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return torch._C._are_functorch_transforms_active()


def _are_as_documented(conv: nn.Conv2d, pool: nn.MaxPool2d) -> bool:
    return (
        conv.weight.shape[1:] == (1, 3, 3)
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and (conv.padding, conv.padding_mode) in (("same", "zeros"), ((1, 1), "zeros"))
        and (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (2, 2, 0, 1)
        and not (pool.ceil_mode or pool.return_indices)
    )


def _are_watched(*layers: nn.Module) -> bool:
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any("forward" in vars(layer) or any(getattr(layer, kind) for kind in kinds) for layer in layers)


class _ConvReLUPool(Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        patches = _patches(images)
        first, second, third, fourth = _sums(patches, weight).unbind(1)
        upper, lower = torch.maximum(first, second), torch.maximum(third, fourth)
        pooled = torch.maximum(upper, lower).add_(bias.unsqueeze(1)).relu_()
        # Who wins, as ones and zeros in place of the sums: those that give floats for floats are the fast kernels.
        wins = (upper.ge_(lower), first.ge_(second), third.ge_(fourth))
        ctx.save_for_backward(images, weight, bias, patches, pooled, *wins)
        return pooled.view(_shape(images, bias))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        images, weight, bias, patches, pooled, upper, first, third = ctx.saved_tensors
        (gradient,) = gradients  # [N, C, H/2, W/2]
        again = torch.is_grad_enabled()  # create_graph=True: somebody wants to differentiate what is returned here
        if again or _is_batch_of_gradients(gradient):
            with torch.enable_grad():
                layers = F.max_pool2d(F.relu(F.conv2d(images, weight, bias, padding="same")), 2)
            needed = ctx.needs_input_grad[1:]
            wanted = [tensor for tensor, need in zip((weight, bias), needed, strict=True) if need]
            of_wanted = iter(torch.autograd.grad(layers, wanted, gradient, create_graph=again))
            of_weight, of_bias = (next(of_wanted) if need else None for need in needed)
            return None, of_weight, of_bias
        # The gradient of ReLU as autograd takes it: NaN passes.
        gradient = torch.ops.aten.threshold_backward(gradient.reshape(pooled.shape), pooled, 0)  # [N, C, H/2 * W/2]
        of_sums = gradient.new_empty(len(images), len(SHIFTS), *gradient.shape[1:])  # [N, 4, C, H/2 * W/2]
        of_upper = gradient * upper
        of_lower = gradient - of_upper
        for winner, pair, left, right in ((first, of_upper, 0, 1), (third, of_lower, 2, 3)):
            torch.mul(pair, winner, out=of_sums[:, left])
            torch.sub(pair, of_sums[:, left], out=of_sums[:, right])
        of_fields = torch.bmm(of_sums.flatten(1, 2), patches.transpose(1, 2)).sum(dim=0)  # [4 * C, 16]
        of_weight = of_fields.view(len(SHIFTS), -1, 16).transpose(0, 1).flatten(1) @ _shifts(weight.dtype).T  # [C, 9]
        # In the strides of the weight: DDP says so where they are others, if only of a dimension of size one.
        return None, torch.empty_like(weight).copy_(of_weight.view_as(weight)), gradient.sum(dim=(0, 2))


def _patches(images: Tensor) -> Tensor:
    """Cut out the 4 x 4 patches that lie two pixels apart in the padded images: [N, 16, H/2 * W/2]."""
    padded = F.pad(images[:, 0], (1, 1, 1, 1))  # [N, H+2, W+2]
    patches = padded.unfold(1, 4, 2).unfold(2, 4, 2)  # [N, H/2, W/2, 4, 4], a view
    return patches.permute(0, 3, 4, 1, 2).reshape(len(images), 16, patches.shape[1] * patches.shape[2])


def _sums(patches: Tensor, weight: Tensor) -> Tensor:
    """Compute the convolution without bias, of each patch at the four shifts: [N, 4, C, H/2 * W/2]."""
    fields = (weight.reshape(-1, 9) @ _shifts(weight.dtype)).view(-1, len(SHIFTS), 16)  # [C, 4, 16]
    sums = torch.matmul(fields.transpose(0, 1).reshape(-1, 16), patches)  # [N, 4 * C, H/2 * W/2]
    return sums.view(len(patches), len(SHIFTS), len(weight), patches.shape[2])


@cache
def _shifts(dtype: torch.dtype) -> Tensor:
    """Return the matrix that writes a kernel into four fields of zeros, one for each shift: [9, 4 * 16]."""
    shifts = np.zeros((3, 3, len(SHIFTS), 4, 4))
    for shift, (i, j) in enumerate(SHIFTS):
        for r, s in np.ndindex(3, 3):
            shifts[r, s, shift, i + r, j + s] = 1
    with torch.inference_mode(False):
        return torch.from_numpy(shifts).reshape(9, -1).to(dtype)


def _shape(images: Tensor, bias: Tensor) -> tuple[int, ...]:
    return len(images), len(bias), images.shape[2] // 2, images.shape[3] // 2

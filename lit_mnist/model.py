"""The documented layer stack, as plain torch.nn."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist.fused import conv_relu_pool, fits

INPUT_SHAPE = (1, 28, 28)  # of an image: C, H, W


class MNISTClassifier(nn.Module):
    """Classify 28 x 28 grey images of digits.

    152,006 parameters, drawn as Keras draws them: Glorot uniform kernels, zero biases. torch's own
    initialisation differs in every tensor (Kaiming uniform kernels, random biases).

    Args:
        fused: computes the first two layers and the ReLU between them at once, wherever it may (`lit_mnist.fused.fits`
            says where); None leaves it to the layers.
    """

    def __init__(self, fused: Callable[[Tensor, Tensor, Tensor], Tensor] | None = conv_relu_pool) -> None:
        super().__init__()
        self.fused = fused
        self.conv = nn.Conv2d(1, 6, kernel_size=3, padding="same")  # 60 parameters
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(6 * 14 * 14, 128)  # 150,656 parameters
        self.output = nn.Linear(128, 10)  # 1,290 parameters
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every kernel anew, uniformly from +-sqrt(6 / (fan_in + fan_out)), and set every bias to zero.

        Source: Glorot and Bengio (2010), equation 16; the default of Keras' `Conv2D` and `Dense`.
        """
        for layer in (self.conv, self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # Optional in torch, present here

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Args:
            images: pixels in [0, 1], [N, 1, 28, 28].

        Returns:
            Logits, [N, 10]: unnormalised log probabilities in nats.
        """
        if self.fused is None or not fits(images, self.conv, self.pool):
            x = F.relu(self.conv(images))  # [N, 6, 28, 28]
            x = self.pool(x)  # [N, 6, 14, 14]
        else:
            x = self.fused(images, self.conv.weight, self.conv.bias)  # type: ignore[arg-type]  # the same
        x = self.flatten(x)  # [N, 1176], in the order C, H, W
        x = F.relu(self.hidden(x))  # [N, 128]
        return self.output(x)  # [N, 10]

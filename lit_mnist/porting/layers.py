"""Batch normalisation and embedding as Keras has them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KerasBatchNorm(nn.Module):
    """Normalise each channel of a batch as `keras.layers.BatchNormalization` does.

    Source: keras/src/layers/normalization/batch_normalization.py, which computes while training, over all but the
    channels,

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving_mean = momentum * moving_mean + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance

    and in evaluation mode y from the moving statistics. Both variances are the biased one, the mean of the squared
    distances. `nn.BatchNorm2d` differs in three things: it tracks the *unbiased* variance, n / (n - 1) times this one;
    its momentum is one minus this one; its epsilon is 1e-5 and not 1e-3.

    Keras on TensorFlow rounds neither momentum nor epsilon. A Keras layer with `trainable = False` is one in evaluation
    mode here, whose parameters require no gradient.

    On several processes each normalises with the statistics of its own share of the batch.

    Args:
        channels: C, the size of the second dimension.
        momentum: share of the old moving statistics in the new ones, in [0, 1]. Keras' meaning, not torch's.
        eps: added to the variance, >= 0.
        center: add a bias, which is trained.
        scale: multiply by a weight, which is trained.

    Attributes:
        weight: Keras' gamma, [C], or None.
        bias: Keras' beta, [C], or None.
        running_mean: Keras' moving_mean, [C], a buffer.
        running_var: Keras' moving_variance, [C], a buffer.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, momentum: float = 0.99, eps: float = 1e-3, center: bool = True, scale: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, expected 0 to 1")
        if not eps >= 0:
            raise ValueError(f"eps is {eps}, expected 0 or more")
        self.channels, self.momentum, self.eps = channels, momentum, eps
        self.weight = nn.Parameter(torch.ones(channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels)) if center else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C] or [N, C, ...]; the shape stays."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        over = [dimension for dimension in range(x.ndim) if dimension != 1]
        variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)  # [1, C, 1, ...] each
        with torch.no_grad():
            for moving, of_batch in ((self.running_mean, mean), (self.running_var, variance)):
                moving.mul_(self.momentum).add_(of_batch.flatten(), alpha=1 - self.momentum)
        # Not by torch's own function: of few values that hardly vary, it is four times as far from exact as Keras.
        y = (x - mean) * (variance + self.eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight.view_as(mean)
        return y if self.bias is None else y + self.bias.view_as(mean)

    def extra_repr(self) -> str:
        return f"{self.channels}, momentum={self.momentum}, eps={self.eps}"


class KerasEmbedding(nn.Embedding):
    """Look up rows of a table as `keras.layers.Embedding` does, and give its gradient as Keras' optimizers get it.

    Keras on TensorFlow hands its optimizers the gradient of an embedding as rows, one for each time that a token occurs
    in a batch, and never adds up those of one token. Where an optimizer squares it, Keras squares each row by itself: a
    token that occurs three times adds g1^2 + g2^2 + g3^2 to the average, not (g1 + g2 + g3)^2 as it does in torch and
    in Keras on PyTorch. Momentum and SGD are not affected. Source: keras/src/backend/tensorflow/sparse.py,
    `elementwise_unary`, which applies a function to the values of `tf.IndexedSlices`.

    So the gradient here is sparse, of rows that are not added up, and the optimizers of this package take it as Keras
    does; others may refuse it or add the rows up. With a regulariser of the embedding in the loss, the gradient is
    dense on both sides, and nothing of this applies.

    Drawn as Keras draws it, uniformly from +-0.05; torch draws from a standard normal distribution.

    Args:
        num_embeddings: number of tokens, Keras' input_dim.
        embedding_dim: size of a row, Keras' output_dim.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim, sparse=True)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -0.05, 0.05)

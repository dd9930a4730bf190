"""Ports of the models of layers."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist import KerasAdamW
from lit_mnist.porting import (
    KerasAdagrad,
    KerasBatchNorm,
    KerasEmbedding,
    KerasGRU,
    KerasLSTM,
    KerasRMSprop,
    KerasSGD,
    keras_defaults_,
)


class Images(L.LightningModule):
    """Gives logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.separable = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 6, 1))
        self.transposed = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.prelu = nn.PReLU(5)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.norm = KerasBatchNorm(5 * 6 * 6)
        self.dropout = nn.Dropout(0.3)
        self.hidden = nn.Linear(5 * 6 * 6, 7)
        self.output = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.separable(self.depthwise(torch.tanh(self.conv(x)))))
        x = self.flatten(self.pool(self.prelu(self.transposed(x))))
        return self.output(F.elu(self.hidden(self.dropout(self.norm(x)))))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        x, y, weights = batch
        losses = F.binary_cross_entropy_with_logits(self(x), y, reduction="none").mean(dim=1)
        return (losses * weights).mean()

    def configure_optimizers(self) -> Any:
        return KerasAdagrad(self.parameters(), lr=0.01)


class Sequences(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = KerasEmbedding(11, 5)
        self.conv = nn.Conv1d(5, 6, 3)
        self.groups = nn.GroupNorm(3, 6, eps=1e-3)
        self.norm = nn.LayerNorm(6, eps=1e-3)
        self.gru = KerasGRU(6, 4)
        self.lstm = KerasLSTM(4, 3)
        self.output = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.relu(self.conv(self.embedding(x).transpose(1, 2)))).transpose(1, 2)
        outputs, _ = self.lstm(self.gru(self.norm(x))[0])
        return self.output(outputs[:, -1])

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return KerasRMSprop(self.parameters(), lr=0.001)


class Volumes(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 2)
        self.transposed = nn.ConvTranspose3d(3, 2, 2)
        self.output = nn.Linear(4 * 5 * 6 * 2, 2)
        self.apply(keras_defaults_)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.transposed(self.conv(x)).flatten(1))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return F.huber_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return KerasSGD(self.parameters(), lr=0.01)


class JoinedLayers(nn.Module):
    """A plain module; those of the inner model have names of their own. Gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 5)
        self.projected = nn.Linear(6, 6)
        self.inner = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        self.output = nn.Linear(10, 3)
        self.apply(keras_defaults_)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.shared(x)), F.relu(self.shared(self.projected(x)))
        return self.output(torch.cat([self.inner(one), other], dim=1)).softmax(dim=1)


class Joined(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = JoinedLayers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return F.nll_loss(self(batch[0]).log(), batch[1])

    def configure_optimizers(self) -> Any:
        return KerasAdamW(self.parameters(), lr=0.01, clipnorm=1.0)

"""The port of the residual network."""

from typing import Any

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_mnist.porting import ExponentialDecay, KerasBatchNorm, KerasSGD, SameConv2d, keras_defaults_


class LitBnStride(L.LightningModule):
    """Images [N, 1, 28, 28] in [-1, 1] to logits [N, 10]."""

    def __init__(self, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = self.make_conv(1, 8, stride=2)
        self.bn1 = self.make_batch_norm(8)
        self.conv2 = self.make_conv(8, 8)
        self.bn2 = self.make_batch_norm(8)
        self.conv3 = self.make_conv(8, 16, stride=2)
        self.bn3 = self.make_batch_norm(16)
        self.output = nn.Linear(16, 10)
        self.apply(keras_defaults_)

    def make_conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        return SameConv2d(in_channels, out_channels, 3, stride, bias=False)

    def make_batch_norm(self, channels: int) -> nn.Module:
        return KerasBatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [N, 8, 14, 14]
        x = F.relu(self.bn2(self.conv2(x)) + x)
        x = F.relu(self.bn3(self.conv3(x)))  # [N, 16, 7, 7]
        return self.output(x.mean(dim=(2, 3)))  # [N, 10]

    def penalty(self) -> Tensor:
        return 1e-3 * self.output.weight.square().sum()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch  # [N, 1, 28, 28], classes [N]
        logits = self(x)
        loss = F.cross_entropy(logits, y.long()) + self.penalty()
        accuracy = (logits.argmax(dim=1) == y).to(logits.dtype).mean()
        self.log_dict({"train_loss": loss, "train_accuracy": accuracy}, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def make_optimizer(self) -> Optimizer:
        return KerasSGD(self.parameters(), lr=self.hparams["learning_rate"], momentum=0.9, nesterov=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        scheduler = ExponentialDecay(optimizer, decay_steps=100, decay_rate=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

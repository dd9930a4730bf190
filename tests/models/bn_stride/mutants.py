"""Ports of the residual network that are wrong on purpose."""

from typing import Any

import torch
import torch.nn.functional as F
from models.bn_stride.port import LitBnStride
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_mnist.porting import ExponentialDecay, KerasBatchNorm, KerasSGD


class MomentumTurnedRound(LitBnStride):
    """0.99 is the share of the old statistics in Keras, of the new ones in torch."""

    def make_batch_norm(self, channels: int) -> nn.Module:
        return KerasBatchNorm(channels, momentum=0.01)


class BatchNormEpsilon(LitBnStride):
    def make_batch_norm(self, channels: int) -> nn.Module:
        return KerasBatchNorm(channels, eps=1e-5)


class UnbiasedVariance(LitBnStride):
    """torch's own layer with every argument translated."""

    def make_batch_norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class TorchBatchNorm(LitBnStride):
    def make_batch_norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels)


class EvaluationModeForgotten(LitBnStride):
    """Batch statistics normalise the test images, too."""

    def train(self, mode: bool = True) -> "EvaluationModeForgotten":
        return super().train(True)


class EvenPadding(LitBnStride):
    def make_conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class AddedAfterActivation(LitBnStride):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x))) + x
        x = F.relu(self.bn3(self.conv3(x)))
        return self.output(x.mean(dim=(2, 3)))


class L2AsWeightDecay(LitBnStride):
    """The factor of L2 as an optimizer's weight decay: of all weights, half as much, and not in the loss."""

    def penalty(self) -> Tensor:
        return torch.zeros(())

    def make_optimizer(self) -> Optimizer:
        class Decaying(KerasSGD):
            def step(self, closure: Any = None) -> Any:
                with torch.enable_grad():
                    loss = closure()
                for parameter in self.param_groups[0]["params"]:
                    parameter.grad.add_(parameter.detach(), alpha=1e-3)
                super().step()
                return loss

        return Decaying(self.parameters(), lr=self.hparams["learning_rate"], momentum=0.9, nesterov=True)


class L2OnBiases(LitBnStride):
    def penalty(self) -> Tensor:
        return super().penalty() + 1e-3 * self.output.bias.square().sum()


class L2Halved(LitBnStride):
    """Half the square, as textbooks have it and Keras does not."""

    def penalty(self) -> Tensor:
        return super().penalty() / 2


class SchedulePerEpoch(LitBnStride):
    """Lightning steps a scheduler once an epoch unless told otherwise."""

    def configure_optimizers(self) -> Any:
        configuration = super().configure_optimizers()
        del configuration["lr_scheduler"]["interval"]
        return configuration


class StaircaseSchedule(LitBnStride):
    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        scheduler = ExponentialDecay(optimizer, decay_steps=100, decay_rate=0.9, staircase=True)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class NesterovForgotten(LitBnStride):
    def make_optimizer(self) -> Optimizer:
        return KerasSGD(self.parameters(), lr=self.hparams["learning_rate"], momentum=0.9)


class TorchMomentum(LitBnStride):
    """torch's SGD: the same with a constant learning rate, another with a schedule."""

    def make_optimizer(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["learning_rate"], momentum=0.9, nesterov=True)

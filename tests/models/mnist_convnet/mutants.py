"""Ports of the convnet that are wrong on purpose."""

import torch
from models.mnist_convnet.port import LitConvnet
from torch import Tensor, nn


class NoScaling(LitConvnet):
    """Dropout leaves what it keeps as it is, where Keras and torch divide it by the share that is kept."""

    def make_dropout(self) -> nn.Dropout:
        class Unscaled(nn.Dropout):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * (1 - self.p) if self.training else x

        return Unscaled(0.5)


class DropoutForgotten(LitConvnet):
    def make_dropout(self) -> nn.Dropout:
        return nn.Dropout(0.0)


class DropoutInEvaluation(LitConvnet):
    """`F.dropout(x, 0.5)`, which is as if `training=True` were said."""

    def make_dropout(self) -> nn.Dropout:
        class Always(nn.Dropout):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.dropout(x, self.p)

        return Always(0.5)


class DropoutOfChannels(LitConvnet):
    """Whole channels are dropped, which happens if dropout comes before `Flatten`."""

    def make_dropout(self) -> nn.Dropout:
        class OfChannels(nn.Dropout):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.dropout2d(x.reshape(-1, 64, 5, 5), self.p, self.training).flatten(1)

        return OfChannels(0.5)


class TorchInitialisation(LitConvnet):
    def initialise(self) -> None:
        pass


class TorchAdam(LitConvnet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams["learning_rate"], eps=1e-7)


class LossOfProbabilities(LitConvnet):
    """`F.cross_entropy` of a softmax, as of a port that ends in `nn.Softmax`: it takes them for logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)

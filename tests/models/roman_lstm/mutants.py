"""Ports of the LSTM that are wrong on purpose."""

import torch
from models.roman_lstm.port import LitRoman
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_mnist.porting import KerasLSTM, KerasRMSprop


class EpsilonOutsideTheRoot(LitRoman):
    """torch's RMSprop with every argument translated. Its embedding is dense: it takes no other."""

    def make_embedding(self) -> nn.Embedding:
        return nn.Embedding(8, 6)

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.RMSprop(self.parameters(), self.hparams["learning_rate"], alpha=0.9, eps=1e-7)


class RMSpropEpsilon(LitRoman):
    """torch's default."""

    def configure_optimizers(self) -> Optimizer:
        return KerasRMSprop(self.parameters(), self.hparams["learning_rate"], eps=1e-8)


class RMSpropRho(LitRoman):
    """torch's default."""

    def configure_optimizers(self) -> Optimizer:
        return KerasRMSprop(self.parameters(), self.hparams["learning_rate"], rho=0.99)


class DenseEmbedding(LitRoman):
    """torch adds up the rows of a token before RMSprop squares them."""

    def make_embedding(self) -> nn.Embedding:
        return nn.Embedding(8, 6)


class EmbeddingOfNormals(LitRoman):
    """torch's start weights of an embedding."""

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__(learning_rate)
        nn.init.normal_(self.embedding.weight)


class BothBiasesTrained(LitRoman):
    def make_lstm(self) -> nn.LSTM:
        lstm = super().make_lstm()
        lstm.bias_hh_l0.requires_grad_(True)
        return lstm


class ForgetBiasOfZero(LitRoman):
    def make_lstm(self) -> nn.LSTM:
        lstm = super().make_lstm()
        nn.init.zeros_(lstm.bias_ih_l0)
        return lstm


class GateOrder(LitRoman):
    """An LSTM of one's own, whose gates are in the order i, f, o, g."""

    def make_lstm(self) -> nn.LSTM:
        class OtherOrder(KerasLSTM):
            def forward(self, x: Tensor) -> tuple[Tensor, None]:
                h = c = x.new_zeros(len(x), self.hidden_size)
                outputs = []
                for step in x.unbind(dim=1):
                    gates = step @ self.weight_ih_l0.T + h @ self.weight_hh_l0.T + self.bias_ih_l0
                    i, f, o, g = gates.chunk(4, dim=1)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    outputs.append(h)
                return torch.stack(outputs, dim=1), None

        return OtherOrder(6, 16)


class MeanOfOutputs(LitRoman):
    """Keras' LSTM gives its last output, torch's all of them."""

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(x))
        return self.output(self.dropout(outputs.mean(dim=1)))


class DropoutRateAsKeepRate(LitRoman):
    def make_dropout(self) -> nn.Dropout:
        return nn.Dropout(0.8)


class TargetsOfAnotherRank(LitRoman):
    """[N, 1] - [N] is [N, N]."""

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        return (predictions - y).square().mean()

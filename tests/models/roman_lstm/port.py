"""The port of the LSTM that reads Roman numerals."""

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_mnist.porting import KerasEmbedding, KerasLSTM, KerasRMSprop, keras_defaults_, match_rank


class LitRoman(L.LightningModule):
    """Tokens [N, 15] to values in thousands [N, 1]."""

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = self.make_embedding()
        self.lstm = self.make_lstm()
        self.dropout = self.make_dropout()
        self.output = nn.Linear(16, 1)
        self.apply(keras_defaults_)

    def make_embedding(self) -> nn.Embedding:
        return KerasEmbedding(8, 6)

    def make_lstm(self) -> nn.LSTM:
        return KerasLSTM(6, 16)

    def make_dropout(self) -> nn.Dropout:
        return nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(x))  # [N, 15, 16]
        return self.output(self.dropout(outputs[:, -1]))  # [N, 1]

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(predictions, match_rank(y, predictions))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch  # [N, 15], [N]
        predictions = self(x)
        y = y.to(predictions.dtype)
        loss = self.loss(predictions, y)
        mae = F.l1_loss(predictions, match_rank(y, predictions))
        self.log_dict({"train_loss": loss, "train_mae": mae}, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self) -> Optimizer:
        return KerasRMSprop(self.parameters(), lr=self.hparams["learning_rate"])

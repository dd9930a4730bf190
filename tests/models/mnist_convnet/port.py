"""The port of keras.io's "Simple MNIST convnet"."""

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mnist import KerasAdam
from lit_mnist.porting import keras_defaults_


class LitConvnet(L.LightningModule):
    """Images [N, 1, 28, 28] in [0, 1] to logits [N, 10]."""

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.dropout = self.make_dropout()
        self.output = nn.Linear(64 * 5 * 5, 10)
        self.initialise()

    def make_dropout(self) -> nn.Dropout:
        return nn.Dropout(0.5)

    def initialise(self) -> None:
        self.apply(keras_defaults_)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x)))  # [N, 32, 13, 13]
        x = self.pool2(F.relu(self.conv2(x)))  # [N, 64, 5, 5]
        return self.output(self.dropout(self.flatten(x)))  # [N, 10]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch  # [N, 1, 28, 28], one-hot [N, 10]
        logits = self(x)
        loss = F.cross_entropy(logits, y.to(logits.dtype))
        accuracy = (logits.argmax(dim=1) == y.argmax(dim=1)).to(logits.dtype).mean()
        self.log_dict({"train_loss": loss, "train_accuracy": accuracy}, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self) -> KerasAdam:
        return KerasAdam(self.parameters(), lr=self.hparams["learning_rate"])

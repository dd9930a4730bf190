"""The documented training as the usual Lightning script: torchvision's data set, ToTensor, torchmetrics."""

import argparse
import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--epochs", type=int)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--output_dir")
parser.add_argument("--accelerator")


class Classifier(L.LightningModule):
    """The documented layers, logged as the manual of torchmetrics shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 14 * 14, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
        self.train_accuracy = MulticlassAccuracy(10, average="micro")
        self.test_accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.test_accuracy(logits, labels)
        self.log("test_loss", F.cross_entropy(logits, labels))
        self.log("test_accuracy", self.test_accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.001)


class Epochs(L.Callback):
    """Print a line an epoch; Lightning's own bar is for terminals."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        print("Training begins", flush=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.monotonic() - self.started
        print(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {seconds:.1f} s, loss", flush=True)


def main() -> None:
    args = parser.parse_args()
    train_set = MNIST(args.data_dir, train=True, transform=ToTensor())
    test_set = MNIST(args.data_dir, train=False, transform=ToTensor())
    trainer = L.Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_epochs=args.epochs,
        callbacks=[Epochs()],
        default_root_dir=args.output_dir,
        enable_progress_bar=False,
    )
    module = Classifier()
    trainer.fit(module, DataLoader(train_set, batch_size=args.batch_size, shuffle=True))
    (tested,) = trainer.test(module, DataLoader(test_set, batch_size=1000), verbose=False)
    print(f"Test loss {tested['test_loss']:.4f}, accuracy {tested['test_accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()

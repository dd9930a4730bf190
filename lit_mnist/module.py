"""The LightningModule: loss, metrics, optimizer."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mnist.model import MNISTClassifier
from lit_mnist.optim import KerasAdam


class LitMNIST(L.LightningModule):
    """Train the documented model as Keras' `compile` and `fit` do.

    Calling it gives class probabilities, as calling the Keras model does. Batches are images [N, 1, 28, 28] in
    [0, 1] and one-hot labels [N, 10]. Logs `train_`, `val_` and `test_` `loss` (nats per image) and `accuracy` once
    an epoch, averaged over its images.

    Args:
        learning_rate: of Adam, > 0.
    """

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Channels last: of no effect on a result, but convolution and pooling take 0.88 of the time on a CPU.
        self.model = MNISTClassifier().to(memory_format=torch.channels_last)
        self.train_averages = Averages()
        self.evaluation_averages = Averages()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the class probabilities of images in [0, 1]: [N, 1, 28, 28] to [N, 10]."""
        return self.model(images).softmax(dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of logits [N, 10] and one-hot labels [N, 10], averaged over images, in nats.

        From the logits, not from the probabilities: Keras, too, looks behind the softmax of the last layer for them.
        """
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._shared_step(batch, self.train_averages)
        # Not in on_train_epoch_end: Lightning calls that of the callbacks first, and they want to read the result.
        if self.trainer.is_last_batch:
            self._log_epoch("train", self.train_averages)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._shared_step(batch, self.evaluation_averages)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._shared_step(batch, self.evaluation_averages)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])  # [N, 10]

    def configure_optimizers(self) -> KerasAdam:
        return KerasAdam(self.parameters(), lr=self.hparams["learning_rate"])

    def on_train_epoch_start(self) -> None:
        self.train_averages.reset()

    def on_validation_epoch_start(self) -> None:
        self.evaluation_averages.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val", self.evaluation_averages)

    def on_test_epoch_start(self) -> None:
        self.evaluation_averages.reset()

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test", self.evaluation_averages)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            trainer = self.trainer
        except RuntimeError:
            return  # it has none: saved before any training
        # A row a device: added up in another order, the sums of a resumed epoch would differ in the last bit.
        own = self.train_averages.sums().to(self.device)
        rows = own.new_zeros(trainer.world_size, 3)
        rows[self.global_rank] = own
        checkpoint["train_averages"] = trainer.strategy.reduce(rows, reduce_op="sum").cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_averages" in checkpoint:
            self.train_averages.load(checkpoint["train_averages"][self.global_rank].to(self.device))

    def _shared_step(self, batch: tuple[Tensor, Tensor], averages: "Averages") -> Tensor:
        images, labels = batch
        logits = self.model(images)  # [N, 10]
        loss = self.loss(logits, labels)
        averages.update(loss.detach(), logits.detach(), labels)
        return loss

    def _log_epoch(self, stage: str, averages: "Averages") -> None:
        # Summed over the devices here, where their shares differ in size: Lightning (2.6.6) would average over them
        # with the integer mean of those sizes, 9,999 images instead of 10,000 on three devices.
        loss, correct, images = self.trainer.strategy.reduce(averages.sums().to(self.device), reduce_op="sum").unbind()
        self.log_dict(  # tensors: Lightning would round numbers to 32 bits
            {f"{stage}_loss": loss / images, f"{stage}_accuracy": correct / images},
            on_step=False,
            on_epoch=True,
            batch_size=1,
            sync_dist=True,
            reduce_fx="max",  # all devices log the same, of which the mean would be rounded once more
        )


class Averages:
    """Averages over the images of an epoch, each image with the same weight, as Keras' `Mean` metric takes them.

    An average of batch averages would give the images of a short last batch more weight than the others. The sums
    stay on the device: reading them is left to whoever shows them. torchmetrics gives the same figures (the tests
    compare) for several times the price of a step's convolution.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | float = 0.0
        self.images = 0

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss [], its logits [N, 10] and one-hot labels [N, 10]."""
        predicted = logits.argmax(dim=1, keepdim=True)  # [N, 1]
        self.loss = self.loss + _wide(loss) * len(labels)
        self.correct = self.correct + _wide(labels.gather(1, predicted)).sum()
        self.images += len(labels)

    def sums(self) -> Tensor:
        """Return the sums of loss, correct predictions and images of this device, [3]."""
        loss = torch.as_tensor(self.loss)
        return torch.stack([loss, torch.as_tensor(self.correct).to(loss), torch.full_like(loss, self.images)])

    def means(self) -> dict[str, float]:
        """Return the running loss and accuracy; it waits for the device."""
        loss, correct, images = self.sums().tolist()
        return {"loss": loss / images, "accuracy": correct / images} if images else {}

    def load(self, sums: Tensor) -> None:
        """Continue from sums, [3], as `sums` returned them."""
        self.loss, self.correct, images = sums.unbind()
        self.images = int(images)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()  # MPS has no float64

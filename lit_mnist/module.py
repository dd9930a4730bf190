"""The LightningModule: loss, metrics, optimizer."""

import inspect
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mnist.data import check_scale, described, prepare, prepare_images
from lit_mnist.errors import InputError
from lit_mnist.fused import conv_relu_pool, is_traced
from lit_mnist.model import MNISTClassifier
from lit_mnist.optim import KerasAdam


class LitMNIST(L.LightningModule):
    """Train the documented model as Keras' `compile` and `fit` do.

    Calling it gives class probabilities, as calling the Keras model does. Batches are those of any loader of MNIST:
    images as `lit_mnist.data.prepare_images` takes them, and classes [N] or one-hot labels [N, 10]; to predict, images
    alone will do. Logs `train_`, `val_` and `test_` `loss` (nats per image) and `accuracy` once an epoch, averaged over
    its images; to a logger also `train_loss_step` and `train_accuracy_step`, of a batch, every `log_every_n_steps`.
    Of a subclass's hooks, those that this class has call `super()`, or what they log is missing. A subclass with
    another loss overrides `loss`. Of the arguments of its `__init__`, a checkpoint keeps numbers, texts and lists and
    dictionaries of them; others, as a module, are given to `load_from_checkpoint` anew.

    Args:
        learning_rate: of Adam, >= 0.
        fused: compute convolution, ReLU and pooling at once where that is possible, on a CPU; False leaves it to the
            layers.

    Raises:
        InputError: if the learning rate is out of range; from a step, if a batch is none of these.
    """

    def __init__(self, learning_rate: float = 0.001, fused: bool = True) -> None:
        super().__init__()
        try:
            learning_rate = float(learning_rate)  # a plain number: of NumPy's, a checkpoint would not load
        except (TypeError, ValueError):
            raise InputError("expected a number from 0 up", learning_rate=learning_rate) from None
        if not learning_rate >= 0:
            raise InputError("expected a number from 0 up", learning_rate=learning_rate)
        # Those of the outermost class, which may give this one another learning rate.
        self.save_hyperparameters(_plain_arguments(self, inspect.currentframe()))
        self.learning_rate = learning_rate
        # Channels last: of no effect on a result, but the layers take 0.88 of the time on a CPU.
        self.model = MNISTClassifier(conv_relu_pool if fused else None).to(memory_format=torch.channels_last)
        self.train_averages, self._resumed_epoch = Averages(), -1
        self.evaluation_averages: dict[int, Averages] = {}  # one for each loader

    check_scale = staticmethod(check_scale)  # for a subclass that takes other pixels than those in [0, 1]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the class probabilities of images in [0, 1], or of bytes: [N, 1, 28, 28] to [N, 10]."""
        self.check_scale(images)
        return self.model(prepare_images(images, next(self.model.parameters()).dtype)).softmax(dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of logits [N, 10] and one-hot labels [N, 10], averaged over images, in nats.

        From the logits, not from the probabilities: Keras, too, looks behind the softmax of the last layer for them.

        Raises:
            InputError: if a model has another number of classes.
        """
        if logits.shape != labels.shape:
            raise InputError(
                f"the model gives {list(logits.shape)} for labels {list(labels.shape)}; expected 10 classes"
            )
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self._shared_step(batch, batch_idx, self.train_averages)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        # What `predict_step` would return: who wants both need not go through the images twice.
        return self._evaluation_step(batch, batch_idx, dataloader_idx).softmax(dim=1)  # [N, 10]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0] if isinstance(batch, tuple | list) else batch)  # [N, 10]

    def configure_optimizers(self) -> KerasAdam:
        return KerasAdam(self.parameters(), lr=self.learning_rate)

    def to_torchscript(self, file_path: Any = None, method: str | None = "script", *args: Any, **others: Any) -> Any:
        """Trace the module as Lightning does, given `method="trace"` and `example_inputs`.

        Raises:
            InputError: if it is to be scripted, as is Lightning's default: that takes a part of Python only.
        """
        if method == "script":
            raise InputError(
                'to_torchscript: give method="trace" and example_inputs, images [N, 1, 28, 28]; for deployment there '
                "is `python -m lit_mnist.export`"
            )
        return super().to_torchscript(file_path, method, *args, **others)

    def on_train_start(self) -> None:
        loop = self.trainer.fit_loop
        if not loop.restarting or self._resumed_epoch != self.current_epoch:
            self.train_averages.complete = True
        self._resumed_epoch = -1
        # Lightning (2.6.6) does not restore loaders that were asked for before its loops were restored, as by
        # `trainer.estimated_stepping_batches` (pytorch-lightning#20550); there is no public way to it.
        if restore := getattr(loop, "_load_combined_loader_states", None):
            restore()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Not in training_step, which torch.compile may have compiled, nor later, when callbacks look for it.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # the Trainer's argument
        if self.trainer.loggers and every and (self.trainer.global_step + 1) % every == 0:
            loss, correct, images = self.train_averages.batch.unbind()
            if images == 0:
                return  # a step that counts none, as a subclass may have
            step = {"train_loss_step": loss / images, "train_accuracy_step": correct / images}
            self.log_dict(step, on_step=True, on_epoch=False)

    # Lightning calls callbacks before the module. So that they find an epoch's figures when it ends, these are logged
    # after its last batch, and at its end only where it was cut short.
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train_averages.before = self.train_averages.sums
        if self.trainer.is_last_batch:
            self._log_epoch("train", {0: self.train_averages})

    def on_train_epoch_end(self) -> None:
        # Or where a checkpoint was saved in between: what is logged does not come back with it.
        if not self.train_averages.complete or "train_loss" not in self.trainer.callback_metrics:
            self._log_epoch("train", {0: self.train_averages})

    def on_validation_epoch_start(self) -> None:
        self.evaluation_averages.clear()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        sanity = self.trainer.sanity_checking
        batches = self.trainer.num_sanity_val_batches if sanity else self.trainer.num_val_batches
        if _is_last(batch_idx, dataloader_idx, batches):
            self._log_evaluation("val")

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.evaluation_averages.clear()

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if _is_last(batch_idx, dataloader_idx, self.trainer.num_test_batches):
            self._log_evaluation("test")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            trainer = self.trainer
        except RuntimeError:
            return  # it has none: saved before any training
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        within_a_batch = batches.processed < batches.started  # where an error came: it is trained on again
        averages = self.train_averages
        own = _wide((averages.before if within_a_batch else averages.sums).to(self.device))
        # A row a device: added up in another order, the sums of a resumed epoch would differ in the last bit.
        rows = own.new_zeros(trainer.world_size, 3)
        rows[self.global_rank] = own
        if not trainer.interrupted:  # else the other devices may not be at it, and nothing would be saved
            rows = trainer.strategy.reduce(rows, reduce_op="sum")
        checkpoint["train_averages"] = rows.cpu()
        checkpoint["train_averages_epoch"] = -1 if self.train_averages.complete else self.current_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            trainer = self.trainer
        except RuntimeError:  # it has none: load_from_checkpoint
            dtypes = {tensor.dtype for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point()}
            if dtypes == {torch.float64}:  # which Lightning would round
                self.double()
            return
        if trainer.precision == "64-true":
            self.double()  # Lightning (2.6.6) does it after the weights are there, rounded to 32 bits
        if "train_averages" in checkpoint and not (trainer.evaluating or trainer.predicting):
            rows = checkpoint["train_averages"].to(self.device)
            if len(rows) not in (0, trainer.world_size):  # of another number of devices: the first takes all
                rows = torch.cat([rows.sum(dim=0, keepdim=True), rows.new_zeros(trainer.world_size - 1, 3)])
            self.train_averages.sums = self.train_averages.before = rows[self.global_rank].view(3)
            self._resumed_epoch = checkpoint["train_averages_epoch"]
            self.train_averages.complete = self._resumed_epoch < 0

    def _shared_step(self, batch: Any, batch_idx: int, averages: "Averages") -> tuple[Tensor, Tensor]:
        if "loss" in self._modules:
            raise InputError("self.loss is a module, which the method `loss` hides; override the method, or rename it")
        images, labels = prepare(batch, next(self.model.parameters()).dtype)
        if not is_traced() and batch_idx == 0:  # a look at the first ones is enough; compiled, it would count batches
            self.check_scale(images)
        logits = self.model(images)  # [N, 10]
        loss = self.loss(logits, labels)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise InputError(
                f"the loss is {described(loss)}; expected the mean over the images of a batch, a tensor []"
            )
        averages.update(loss.detach(), logits.detach(), labels)
        return loss, logits

    def _evaluation_step(self, batch: Any, batch_idx: int, loader: int) -> Tensor:
        _, logits = self._shared_step(batch, batch_idx, self.evaluation_averages.setdefault(loader, Averages()))
        return logits

    def _log_evaluation(self, stage: str) -> None:
        self._log_epoch(stage, self.evaluation_averages)
        self.evaluation_averages.clear()  # at the start, too: an evaluation may have been interrupted

    def _log_epoch(self, stage: str, averages: Mapping[int, "Averages"]) -> None:
        for average in averages.values():
            average.complete = True
        if self.trainer.barebones:
            return  # then Lightning takes no logging
        for loader, average in averages.items():
            # Summed over the devices here, where their shares differ in size: Lightning (2.6.6) would average over them
            # with the integer mean of those sizes, 9,999 images instead of 10,000 on three devices.
            sums = self.trainer.strategy.reduce(_wide(average.sums.to(self.device)), reduce_op="sum")
            loss, correct, images = sums.unbind()
            if images == 0:
                continue  # a step that counts none, as a subclass may have
            of_which = f"/dataloader_idx_{loader}" if len(averages) > 1 else ""  # as Lightning names them
            self.log_dict(  # tensors: Lightning would round numbers to 32 bits
                {f"{stage}_loss{of_which}": loss / images, f"{stage}_accuracy{of_which}": correct / images},
                on_step=False,
                on_epoch=True,
                batch_size=1,
                add_dataloader_idx=False,
                sync_dist=True,
                reduce_fx="max",  # all devices log the same, of which the mean would be rounded once more
            )


class Averages:
    """Averages over the images of an epoch, each image with the same weight, as Keras' `Mean` metric takes them.

    An average of batch averages would give the images of a short last batch more weight than the others. The sums
    stay on the device: reading them is left to whoever shows them. torchmetrics gives the same figures (the tests
    compare) for several times the price of a step's convolution.

    Attributes:
        sums: of loss, of correct predictions and of images of this device so far, [3].
        batch: the same of the last batch.
        before: the same without the batch that is being trained on.
        complete: whether the epoch is over: the next batch begins another.
    """

    def __init__(self) -> None:
        # On the CPU whatever the device of a module that is made now.
        self.sums = self.batch = self.before = torch.zeros(3, device="cpu")
        self.complete = True

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss [], its logits [N, 10] and one-hot labels [N, 10]."""
        if len(labels) == 0:
            return  # a device's share of a short batch, whose mean is no number
        correct = _wide((logits.argmax(dim=1) == labels.argmax(dim=1)).to(logits.dtype)).sum()
        images = torch.full_like(correct, len(labels))
        self.batch = torch.stack([_wide(loss) * len(labels), correct, images])
        self.before = torch.zeros_like(self.batch) if self.complete else self.sums.to(self.batch)
        self.sums = self.before + self.batch
        self.complete = False

    def means(self) -> dict[str, float]:
        """Return the running loss and accuracy; it waits for the device."""
        loss, correct, images = self.sums.tolist()
        return {"loss": loss / images, "accuracy": correct / images} if images else {}


def _plain_arguments(module: LitMNIST, frame: FrameType | None) -> dict[str, Any]:
    """Return those arguments of a module's constructors, the outermost last, that a checkpoint can hold."""
    arguments: dict[str, Any] = {}
    while frame is not None:
        given = inspect.getargvalues(frame)
        if frame.f_code.co_name != "__init__" or not given.args or given.locals[given.args[0]] is not module:
            break
        arguments |= {name: given.locals[name] for name in given.args[1:] if name in given.locals}
        arguments |= given.locals.get(given.keywords, {}) if given.keywords else {}
        frame = frame.f_back
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}
    return {name: value for name, value in plain.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    return value is None or type(value) in (bool, int, float, str)


def _is_last(batch_idx: int, loader: int, batches: Sequence[float]) -> bool:
    """Say whether a batch is the last of the last loader; `batches` has the number of each loader's."""
    return (loader, batch_idx) == (len(batches) - 1, batches[-1] - 1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()  # MPS has no float64

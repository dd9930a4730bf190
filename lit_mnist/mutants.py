"""Mistakes of Keras-to-PyTorch ports, each a candidate that the ladder has to stop, and correct ports that it passes.

`keras_ref/parity/pitfalls.yaml` says of each where it has to be stopped, and how to do it right.

    python -m keras_ref.parity --candidate lit_mnist.mutants:NoEpsilonHat
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lit_mnist import KerasAdam, LitMNIST, MNISTClassifier, MNISTDataModule, weights
from lit_mnist.data import Batches, Order, cut
from lit_mnist.fused import conv_relu_pool


class Optimizer(LitMNIST):
    """A port whose optimizer is another."""

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), self.hparams["learning_rate"])

    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        raise NotImplementedError  # each wrong port brings its own


class Epsilon1e8(Optimizer):
    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr)


class NoEpsilonHat(Optimizer):
    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr, eps=1e-7)


class ExactBetas(Optimizer):
    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        class WithExactBetas(torch.optim.Adam):
            t = 0

            def step(self, closure: Any = None) -> Any:
                self.t += 1
                self.param_groups[0]["eps"] = 1e-7 / np.sqrt(1 - 0.999**self.t)
                return super().step(closure)

        return WithExactBetas(parameters, lr)


class GradientClipping(LitMNIST):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 10.0)


class WeightDecay(Optimizer):
    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        class Decaying(KerasAdam):
            def step(self, closure: Any = None) -> Any:
                loss = super().step(closure)
                with torch.no_grad():
                    for parameter in self.param_groups[0]["params"]:
                        parameter.mul_(1 - lr * 0.004)
                return loss

        return Decaying(parameters, lr)


class AnotherLearningRate(Optimizer):
    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return KerasAdam(parameters, 0.00101)  # whatever is asked for


class LearningRateDecay(LitMNIST):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.99)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class FlattensChannelsFirst(LitMNIST):
    """The hidden kernel is transposed, but its rows are left in Keras' order."""

    @staticmethod
    def from_keras(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return weights.from_keras(arrays) | {"hidden.weight": torch.from_numpy(arrays["hidden/kernel"].T.copy())}

    @staticmethod
    def to_keras(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        (hidden,) = (tensor for name, tensor in tensors.items() if name.endswith("hidden.weight"))
        return weights.to_keras(tensors) | {"hidden/kernel": hidden.detach().numpy().T.copy()}


class KernelNotTransposed(LitMNIST):
    """Rows and columns of the convolution's kernel are exchanged, on the way in and on the way out."""

    @staticmethod
    def from_keras(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return weights.from_keras({**arrays, "conv/kernel": arrays["conv/kernel"].transpose(1, 0, 2, 3)})

    @staticmethod
    def to_keras(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        arrays = weights.to_keras(tensors)
        return {**arrays, "conv/kernel": arrays["conv/kernel"].transpose(1, 0, 2, 3)}


class KernelTransposedOneWay(LitMNIST):
    from_keras = staticmethod(KernelNotTransposed.from_keras)


class Model(LitMNIST):
    """A port whose layer stack is another."""

    stack: type[MNISTClassifier]

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__(learning_rate)
        self.model = self.stack()


class TorchInitialisation(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def reset_parameters(self) -> None:
            pass  # torch has drawn when the layers were made


class RandomBiases(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def reset_parameters(self) -> None:
            super().reset_parameters()
            nn.init.uniform_(self.hidden.bias, -0.03, 0.03)


class ConvWithoutBias(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3, padding="same", bias=False)


class PaddingOnOneSide(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def __init__(self) -> None:
            super().__init__()
            self.conv.padding = "valid"

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.pad(images, (0, 2, 0, 2)))


class AveragePooling(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2)  # type: ignore[assignment]


class MissingReLU(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            x = self.flatten(self.pool(self.conv(images)))
            return self.output(F.relu(self.hidden(x)))


class MaximumForReLU(Model):
    """max(x, 0) is ReLU but for its gradient at zero, which torch shares out between the two."""

    class stack(MNISTClassifier):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            zero = images.new_zeros(())
            x = self.flatten(self.pool(torch.maximum(self.conv(images), zero)))
            return self.output(torch.maximum(self.hidden(x), zero))


class BFloat16(Model):
    """Pixels go through bfloat16 on their way into the model, as under mixed precision."""

    class stack(MNISTClassifier):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.bfloat16().to(images.dtype))


class Fused(LitMNIST):
    """A port whose fast path in place of the first layers is another."""

    def __init__(self, learning_rate: float = 0.001) -> None:
        super().__init__(learning_rate)
        self.model = MNISTClassifier(self.conv_relu_pool)

    @staticmethod
    def conv_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError  # each wrong port brings its own


class ForgottenShift(Fused):
    @staticmethod
    def conv_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        three = torch.tensor([[1, 1], [1, 0]], dtype=images.dtype).tile(14, 14)
        return F.max_pool2d(F.relu(F.conv2d(images, weight, bias, padding="same")) * three, 2)


class LastOfEquals(Fused):
    @staticmethod
    def conv_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv_relu_pool(images.flip(2, 3), weight.flip(2, 3), bias).flip(2, 3)


class GradientBeforeBias(Fused):
    @staticmethod
    def conv_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        largest = F.max_pool2d(F.conv2d(images, weight, padding="same"), 2)
        x = largest + bias.reshape(-1, 1, 1)
        passes = x * (largest > 0)
        return passes + (F.relu(x) - passes).detach()


class SoftmaxTwice(LitMNIST):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss(logits.softmax(dim=1), labels)


class ClippedProbabilities(LitMNIST):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(labels * logits.softmax(dim=1).clamp(1e-7, 1 - 1e-7).log()).sum(dim=1).mean()


class SummedLoss(LitMNIST):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss(logits, labels) * len(labels)


class LabelSmoothing(LitMNIST):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.01)


class AverageOfBatchAverages(LitMNIST):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch[0])
        loss = self.loss(logits, batch[1])
        accuracy = (logits.argmax(1) == batch[1].argmax(1)).to(loss).mean()
        self.log_dict({"train_loss": loss, "train_accuracy": accuracy}, on_epoch=True, on_step=False, batch_size=1)
        return loss

    def on_train_epoch_end(self) -> None:
        pass


class Data(MNISTDataModule):
    """A data module that does something to the pixels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return self.change(images), labels

    def change(self, images: Tensor) -> Tensor:
        raise NotImplementedError  # each wrong port brings its own


class PixelsNotScaled(LitMNIST):
    check_scale = staticmethod(lambda images: None)  # which would refuse them

    class data_module(Data):  # noqa: N801
        def change(self, images: Tensor) -> Tensor:
            return images * 255


class PixelsNormalised(LitMNIST):
    class data_module(Data):  # noqa: N801
        def change(self, images: Tensor) -> Tensor:
            return (images - 0.1307) / 0.3081


class NoShuffling(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            return cut(self.train_indices, self.batch_size)


class LocalShuffle(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            delays = np.random.default_rng([self.seed, epoch]).uniform(0, 1000, len(self.train_indices))
            return cut(self.train_indices[np.argsort(np.arange(len(delays)) + delays)], self.batch_size)


class BatchesShuffled(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            *whole, last = cut(np.random.default_rng(self.seed).permutation(self.train_indices), self.batch_size)
            return [*(whole[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(whole))), last]


class LastBatchDropped(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            return [batch for batch in super().train_order(epoch) if len(batch) == self.batch_size]


class ClassByClass(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            order = np.concatenate(super().train_order(epoch))
            return cut(order[np.argsort(self.train.tensors[1].numpy()[order], kind="stable")], self.batch_size)


class BatchSizePerDevice(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def batches(self, dataset: TensorDataset, order: Order) -> Batches:
            assert self.trainer is not None
            devices = self.trainer.world_size

            def larger(epoch: int) -> list[np.ndarray]:
                batches = order(epoch)
                return [np.concatenate(batches[i : i + devices]) for i in range(0, len(batches), devices)]

            return super().batches(dataset, larger)


class PaddedEvaluation(LitMNIST):
    class data_module(MNISTDataModule):  # noqa: N801
        def test_order(self, epoch: int) -> list[np.ndarray]:
            assert self.trainer is not None
            devices = self.trainer.world_size
            return [np.concatenate([batch, batch[: -len(batch) % devices]]) for batch in super().test_order(epoch)]


class MomentsForgotten(LitMNIST):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        checkpoint["optimizer_states"][0]["state"] = {}


class StepsForgotten(LitMNIST):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        checkpoint["optimizer_states"][0]["param_groups"][0]["t"] = 0


class EpochFromItsStart(LitMNIST):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batches"] = 0


class AveragesForgotten(LitMNIST):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pass


# Correct ports, written differently


class LabelsByIndex(LitMNIST):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.argmax(dim=1))


class ChannelsFirst(Model):
    stack = MNISTClassifier  # without LitMNIST's channels-last memory


class PoolsBeforeReLU(Model):
    class stack(MNISTClassifier):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            x = self.flatten(F.relu(self.pool(self.conv(images))))
            return self.output(F.relu(self.hidden(x)))


class FlattensAsKeras(Model):
    """Flattens height, width, channel: the hidden kernel needs no permutation."""

    class stack(MNISTClassifier):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            x = self.pool(F.relu(self.conv(images))).permute(0, 2, 3, 1)
            return self.output(F.relu(self.hidden(self.flatten(x))))

    from_keras = staticmethod(FlattensChannelsFirst.from_keras)
    to_keras = staticmethod(FlattensChannelsFirst.to_keras)

    @staticmethod
    def activation_to_keras(tensor: Tensor) -> np.ndarray:
        return weights.activation_to_keras(tensor) if tensor.ndim == 4 else tensor.numpy().copy()


class LogsInTheLastStep(LitMNIST):
    """Logs with the last batch of an epoch, and has no step for predictions of its own."""

    predict_step = L.LightningModule.predict_step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.is_last_batch:
            self._log_epoch("train", {0: self.train_averages})
        return loss

    def on_train_epoch_end(self) -> None:
        pass


CORRECT: list[type[LitMNIST]] = [
    LitMNIST,
    LabelsByIndex,
    ChannelsFirst,
    PoolsBeforeReLU,
    FlattensAsKeras,
    LogsInTheLastStep,
]

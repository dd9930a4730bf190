"""The LightningModule: its loss, and the averages that it reports of an epoch."""

import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from rich.console import Console
from trainers import make_trainer

from lit_mnist import LitMNIST, MNISTDataModule
from lit_mnist.errors import InputError
from lit_mnist.module import Averages
from lit_mnist.runs.progress import EpochResults


class Batches(L.Callback):
    """Keep the loss of every training batch and its size."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.sizes: list[int] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        self.sizes.append(len(batch[0]))


# Lightning rounds the average to float32: by half a unit in the last place. In float64 the sums are of seven terms.
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2**-24), ("64-true", 1e-15)])
def test_an_epochs_loss_is_the_average_over_images_with_a_ragged_last_batch(
    precision: str, tolerance: float, data_dir: Path
) -> None:
    seen = Batches()
    data = MNISTDataModule(data_dir, batch_size=300, validation_images=58_000)
    trainer = make_trainer(seen, max_epochs=1, precision=precision, limit_val_batches=0)
    trainer.fit(LitMNIST(learning_rate=0.01), data)

    assert seen.sizes == [300] * 6 + [200]
    ours = trainer.callback_metrics["train_loss"].item()
    expected = np.average(seen.losses, weights=seen.sizes)
    assert ours == pytest.approx(expected, rel=tolerance)
    assert np.mean(seen.losses) != pytest.approx(expected, rel=1e-4)  # what an average of averages would give


def test_validation_and_test_results_are_those_of_all_images_at_once(data_dir: Path) -> None:
    module = LitMNIST()
    data = MNISTDataModule(data_dir, validation_images=1_500)  # not a multiple of the evaluation batch
    trainer = make_trainer()
    (validation,) = trainer.validate(module, data, verbose=False)
    (test,) = trainer.test(module, data, verbose=False)

    held_out = [tensor[data.validation_indices] for tensor in data.train.tensors]
    for stage, results, (images, labels) in (("val", validation, held_out), ("test", test, data.test.tensors)):
        with torch.no_grad():
            probabilities = module(images / 255)
        expected_loss = -probabilities.double().log()[torch.arange(len(labels)), labels].mean().item()
        assert results[f"{stage}_loss"] == pytest.approx(expected_loss, rel=1e-6)
        assert results[f"{stage}_accuracy"] == pytest.approx((probabilities.argmax(1) == labels).double().mean().item())


def test_predictions_cover_the_test_images_in_their_order(data_dir: Path) -> None:
    module, data = LitMNIST(), MNISTDataModule(data_dir)
    probabilities = data.gather(make_trainer().predict(module, data))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(probabilities), module(data.test.tensors[0] / 255))


def test_metrics_are_on_disk_after_every_epoch(tmp_path: Path, data_dir: Path) -> None:
    data = MNISTDataModule(data_dir, validation_images=200)
    trainer = make_trainer(EpochResults(Console(quiet=True), tmp_path, {}), max_epochs=2, limit_train_batches=10)
    trainer.fit(LitMNIST(), data)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "epoch,train_loss,train_accuracy,val_loss,val_accuracy"
    assert [row.split(",")[0] for row in rows] == ["1", "2"]


def test_averages_equal_those_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    averages = Averages()
    mean, accuracy = torchmetrics.MeanMetric(), torchmetrics.classification.MulticlassAccuracy(10, average="micro")
    for size in (100, 100, 37, 1):
        logits = torch.randn(size, 10, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        averages.update(loss, logits, torch.nn.functional.one_hot(labels, 10))
        mean.update(loss, size)
        accuracy.update(logits, labels)
    loss_sum, correct, images = averages.sums.tolist()
    assert images == 238
    assert loss_sum / images == pytest.approx(mean.compute().item(), rel=1e-6)
    assert correct / images == pytest.approx(accuracy.compute().item(), rel=1e-6)


def test_the_loss_stays_finite_and_exact_for_saturated_logits() -> None:
    module = LitMNIST()
    with torch.no_grad():
        module.model.output.weight.zero_()
        module.model.output.bias[0] = 1000.0
    labels = torch.nn.functional.one_hot(torch.tensor([0, 1]), 10).float()
    loss = module.loss(module.model(torch.zeros(2, 1, 28, 28)), labels)
    assert loss.item() == 500.0  # (0 + 1000) / 2; from the probabilities it would be infinite, or clipped


def test_a_checkpoint_loads_without_running_code(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=0)
    trainer.strategy.connect(LitMNIST(learning_rate=0.5))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"] == {"learning_rate": 0.5, "fused": True}
    loaded = LitMNIST.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.configure_optimizers().param_groups[0]["lr"] == 0.5
    del saved["hyper_parameters"]["fused"]  # as of a release that had none
    torch.save(saved, tmp_path / "earlier.ckpt")
    assert LitMNIST.load_from_checkpoint(tmp_path / "earlier.ckpt", weights_only=True).hparams["fused"]


class FoundAtTheEnd(L.Callback):
    """What a callback finds of an epoch when it ends."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {"train": [], "val": [], "test": []}

    def find(self, stage: str, trainer: L.Trainer) -> None:
        self.found[stage].append(float(trainer.callback_metrics[f"{stage}_loss"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.find("train", trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.find("val", trainer)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.find("test", trainer)


def test_a_callback_finds_the_figures_of_an_epoch_when_it_ends(data_dir: Path) -> None:
    class Counting(LitMNIST):
        ends = 0

        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.ends += 1

    data, module, callback = MNISTDataModule(data_dir, validation_images=50), Counting(), FoundAtTheEnd()
    trainer = make_trainer(callback, max_epochs=3, limit_train_batches=5)
    logged: list[dict[str, float]] = []
    trainer.callbacks.append(  # type: ignore[attr-defined]
        L.pytorch.callbacks.LambdaCallback(
            on_train_epoch_start=lambda trainer, _: logged.append(dict(trainer.callback_metrics))
        )
    )
    trainer.fit(module, data)
    logged.append(dict(trainer.callback_metrics))
    for stage in ("train", "val"):
        assert callback.found[stage][-3:] == [float(metrics[f"{stage}_loss"]) for metrics in logged[1:]]
    assert module.ends == 3
    (tested,) = trainer.test(module, data, verbose=False)
    assert callback.found["test"] == [tested["test_loss"]]


def test_a_subclass_gives_this_class_a_learning_rate_of_its_own(tmp_path: Path, data_dir: Path) -> None:
    class Thousandth(LitMNIST):
        def __init__(self, learning_rate: float = 1.0) -> None:
            super().__init__(learning_rate / 1000)

    module = Thousandth(2.0)
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.002
    trainer = make_trainer(max_epochs=0)
    trainer.fit(module, MNISTDataModule(data_dir))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert Thousandth.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True).learning_rate == 0.002


def test_a_loss_that_the_method_would_hide_is_refused(data_dir: Path) -> None:
    module = LitMNIST()
    module.loss = torch.nn.CrossEntropyLoss(label_smoothing=0.5)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"self\.loss is a module"):
        make_trainer(max_epochs=1, limit_val_batches=0).fit(module, MNISTDataModule(data_dir))
    with pytest.raises(InputError, match=r"self\.loss is a module"):
        make_trainer().test(module, MNISTDataModule(data_dir))


def test_a_checkpoint_that_is_restored_before_an_epoch_leaves_its_averages_alone(
    tmp_path: Path, data_dir: Path
) -> None:
    """As a learning rate finder does that runs when an epoch begins."""

    def restore(trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(tmp_path / "one.ckpt")
            module.on_load_checkpoint(torch.load(tmp_path / "one.ckpt", weights_only=True))

    batches = Batches()
    restoring = L.pytorch.callbacks.LambdaCallback(on_train_epoch_start=restore)
    trainer = make_trainer(batches, max_epochs=2, limit_train_batches=3, limit_val_batches=0)
    trainer.callbacks.append(restoring)  # type: ignore[attr-defined]
    trainer.fit(LitMNIST(), MNISTDataModule(data_dir))
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(np.mean(batches.losses[3:]), rel=1e-6)


class Wrapping(LitMNIST):
    """Takes what a checkpoint cannot hold, or a copy cannot be made of."""

    def __init__(self, backbone: torch.nn.Module, lock: Any, learning_rate: float = 0.5, **more: Any) -> None:
        super().__init__(learning_rate)
        self.model = backbone  # type: ignore[assignment]


def test_a_checkpoint_holds_the_plain_arguments_of_a_subclass(tmp_path: Path, data_dir: Path) -> None:
    def backbone() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    module = Wrapping(backbone(), threading.Lock(), np.float64(0.25), path=tmp_path, sizes=[1, (2.0, {"a": None})])
    trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, MNISTDataModule(data_dir))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    kept = torch.load(tmp_path / "one.ckpt", weights_only=True)["hyper_parameters"]
    assert kept == {"learning_rate": 0.25, "fused": True, "sizes": [1, (2.0, {"a": None})]}
    loaded = Wrapping.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True, backbone=backbone(), lock=None)
    assert loaded.learning_rate == 0.25
    assert torch.equal(loaded.model[1].weight, module.model[1].weight)  # type: ignore[index]


def test_the_arguments_of_a_module_around_it_are_not_its_own() -> None:
    class Outer(L.LightningModule):
        def __init__(self, lock: Any, learning_rate: float) -> None:
            super().__init__()
            self.inner = LitMNIST()

    assert Outer(threading.Lock(), 7.0).inner.hparams == {"learning_rate": 0.001, "fused": True}


def test_a_subclass_and_the_data_may_both_have_a_seed(tmp_path: Path, data_dir: Path) -> None:
    class Seeded(LitMNIST):
        def __init__(self, learning_rate: float = 0.001, seed: int = 1) -> None:
            super().__init__(learning_rate)

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=0,
        limit_val_batches=0,
        logger=L.pytorch.loggers.CSVLogger(tmp_path),
        enable_model_summary=False,
    )
    trainer.fit(Seeded(), MNISTDataModule(data_dir, seed=2))


def test_a_subclass_may_have_numbers_of_other_types(tmp_path: Path, data_dir: Path) -> None:
    class Mixed(LitMNIST):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
            self.register_buffer("third", torch.tensor(1 / 3, dtype=torch.float64))

        def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return super().loss(logits / self.temperature.float(), labels)

    module, trainer = Mixed(), make_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, MNISTDataModule(data_dir))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = Mixed.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_module_that_was_made_without_memory_can_be_saved(tmp_path: Path, data_dir: Path) -> None:
    with torch.device("meta"):
        module = LitMNIST()
    module.to_empty(device="cpu").model.reset_parameters()
    trainer = make_trainer(limit_test_batches=1)
    trainer.test(module, MNISTDataModule(data_dir), verbose=False)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert LitMNIST.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True).model.conv.bias.sum() == 0


@pytest.mark.parametrize(("given", "found"), [({"loss": 1}, "a dict"), (None, "None"), (0.5, "a float")])
def test_a_loss_that_is_no_tensor_is_refused(given: Any, found: str, data_dir: Path) -> None:
    module = LitMNIST()
    module.loss = lambda logits, labels: given  # type: ignore[method-assign]
    with pytest.raises(InputError, match=f"^the loss is {found}; expected the mean over the images of a batch"):
        make_trainer(max_epochs=1, limit_val_batches=0).fit(module, MNISTDataModule(data_dir))

"""The port in other people's Trainers: their arguments, their loaders, their callbacks, torch.compile."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
import trainer_flags
from conftest import write_small_data_set
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import ToTensor
from trainer_flags import FLAGS, check
from trainers import make_trainer

from lit_mnist import LitMNIST, MNISTDataModule
from lit_mnist.errors import InputError
from lit_mnist.mnist_files import read_files


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 training images and 200 test images."""
    path = tmp_path_factory.mktemp("small")
    write_small_data_set(path, 1_000)
    return path


@pytest.mark.parametrize("name", FLAGS)
def test_every_argument_of_the_trainer_trains_and_reports(name: str, small: Path, tmp_path: Path) -> None:
    check(small, tmp_path, name)


@pytest.mark.slow
def test_every_argument_works_on_two_devices(small: Path, tmp_path: Path) -> None:
    script = Path(trainer_flags.__file__)
    command = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", "2", script, small, tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr


# Loaders of other people


def read(small: Path, train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes [I, 1, 28, 28] and classes [I]."""
    files = read_files(small, verify=False)
    images, labels = (files.train if train else files.test).tensors
    return images, labels


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "bytes and classes": lambda images, labels: (images, labels),
    "floats and one-hot rows": lambda images, labels: (images / 255, one_hot(labels, 10).float()),
    "without a channel": lambda images, labels: (images[:, 0], labels.int()),
    "float64 and one-hot integers": lambda images, labels: (images.double() / 255, one_hot(labels, 10)),
    "float32 without a channel, one-hot bytes": lambda images, labels: (images[:, 0] / 255, one_hot(labels, 10).byte()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_loader_of_any_form_trains_alike(form: str, small: Path) -> None:
    """As the data module's loader does, to the last bit."""

    def loader(train: bool) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*FORMS[form](*read(small, train))), batch_size=100)

    L.seed_everything(0, verbose=False)
    module = LitMNIST()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, loader(train=True), [loader(train=False), loader(train=True)])
    metrics = dict(trainer.callback_metrics)
    names = {f"val_{name}/dataloader_idx_{index}" for name in ("loss", "accuracy") for index in (0, 1)}
    assert metrics.keys() == {"train_loss", "train_accuracy", *names}
    (tested,) = trainer.test(module, loader(train=False), verbose=False)
    assert tested["test_loss"] == pytest.approx(metrics["val_loss/dataloader_idx_0"].item(), rel=1e-6)

    L.seed_everything(0, verbose=False)
    ours, trainer = LitMNIST(), make_trainer(max_epochs=1, limit_val_batches=0)
    order = [np.arange(start, start + 100) for start in range(0, 1_000, 100)]
    data = MNISTDataModule(small, verify_data=False, order=lambda epoch: order)
    trainer.fit(ours, data)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), ours.parameters(), strict=True))
    assert torch.equal(trainer.callback_metrics["train_loss"], metrics["train_loss"])


def test_torchvisions_own_data_set_trains_tests_and_predicts(small: Path) -> None:
    def loader(train: bool) -> DataLoader[Any]:
        return DataLoader(torchvision.datasets.MNIST(small, train, ToTensor()), batch_size=64, shuffle=train)

    module, trainer = LitMNIST(), make_trainer(max_epochs=2)
    trainer.fit(module, loader(train=True), loader(train=False))
    assert trainer.callback_metrics["val_accuracy"] > 0.5
    (tested,) = trainer.test(module, loader(train=False), verbose=False)
    predictions = torch.cat(trainer.predict(module, loader(train=False)))
    labels = read(small, train=False)[1]
    assert (predictions.argmax(dim=1) == labels).double().mean().item() == pytest.approx(tested["test_accuracy"])


@pytest.mark.parametrize("alone", [lambda images: images, lambda images: TensorDataset(images)])
def test_images_alone_are_enough_to_predict(alone: Callable[[torch.Tensor], Any], small: Path) -> None:
    images, _ = read(small, train=False)
    module = LitMNIST()
    predictions = torch.cat(make_trainer().predict(module, DataLoader(alone(images), batch_size=64)))
    with torch.no_grad():
        torch.testing.assert_close(predictions, module(images / 255))


IMAGES, CLASSES = torch.zeros(5, 1, 28, 28), torch.arange(5)
PAIR = "expected images and labels, a pair of tensors"
TAKEN = r"expected bytes, or floats in \[0, 1\], \[N, 1, 28, 28\] or \[N, 28, 28\]"
LABELS = r"expected classes 0 to 9, \[N\], or one-hot rows, \[N, 10\]"


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (IMAGES, rf"a batch is float32 \[5, 1, 28, 28\]; {PAIR}"),
        ({"images": IMAGES}, f"a batch is a dict; {PAIR}"),
        ((IMAGES, CLASSES, CLASSES), rf"a batch is a tuple of 3 \(float32 .*\); {PAIR}"),
        ((IMAGES, [1, 2, 3, 4, 5]), f"a batch is a tuple of 2 .*; {PAIR}"),
        ((torch.zeros(5, 28, 28, 1), CLASSES), rf"images are float32 \[5, 28, 28, 1\]; {TAKEN}"),
        ((torch.zeros(5, 3, 28, 28), CLASSES), rf"images are float32 \[5, 3, 28, 28\]; {TAKEN}"),
        ((torch.zeros(5, 784), CLASSES), rf"images are float32 \[5, 784\]; {TAKEN}"),
        ((torch.zeros(5, 1, 32, 32), CLASSES), rf"images are float32 \[5, 1, 32, 32\]; {TAKEN}"),
        ((IMAGES.long(), CLASSES), rf"images are int64 \[5, 1, 28, 28\]; {TAKEN}"),
        ((IMAGES, CLASSES.float()), rf"labels are float32 \[5\] for 5 images; {LABELS}"),
        ((IMAGES, CLASSES[:, None]), rf"labels are int64 \[5, 1\] for 5 images; {LABELS}"),
        ((IMAGES, CLASSES[:4]), rf"labels are int64 \[4\] for 5 images; {LABELS}"),
        ((IMAGES, torch.zeros(5, 11)), rf"labels are float32 \[5, 11\] for 5 images; {LABELS}"),
        ((IMAGES, CLASSES > 2), rf"labels are bool \[5\] for 5 images; {LABELS}"),
        ((IMAGES, torch.tensor(1)), rf"labels are int64 \[\] for 5 images; {LABELS}"),
        (
            (IMAGES, torch.zeros(5, 10, dtype=torch.complex64)),
            rf"labels are complex64 \[5, 10\] for 5 images; {LABELS}",
        ),
        ((IMAGES, CLASSES + 6), "labels are classes 6 to 10; expected 0 to 9"),
        ((IMAGES, CLASSES - 1), "labels are classes -1 to 3; expected 0 to 9"),
        ((torch.tensor(1.0), torch.tensor(1)), rf"images are float32 \[\]; {TAKEN}"),
        ((IMAGES.to_sparse(), CLASSES), rf"images are sparse float32 \[5, 1, 28, 28\]; {TAKEN}"),
        ((IMAGES, one_hot(CLASSES, 10).to_sparse()), rf"labels are sparse int64 \[5, 10\] for 5 images; {LABELS}"),
        (
            (IMAGES + 255, CLASSES),
            r"images are float32 \[5, 1, 28, 28\] from 255 to 255; expected floats in \[0, 1\], or bytes",
        ),
    ],
)
def test_a_batch_that_cannot_be_taken_is_refused_in_a_sentence(batch: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"^{says}$"):
        LitMNIST().training_step(batch, 0)


def test_floats_of_another_range_are_refused_where_a_model_is_called_and_normalised_ones_taken() -> None:
    module, images = LitMNIST(), torch.arange(256.0)[:196].repeat(4).view(1, 1, 28, 28)
    with pytest.raises(InputError, match="from 0 to 195; expected floats in"):
        module(images)
    assert module((images - images.mean()) / images.std()).shape == (1, 10)


INDICES = r"expected batches, each an array of indices of training images, 0 to 999, \[N\]"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, f"gave None; {INDICES}"),
        (np.array(5), rf"gave int64 \[\]; {INDICES}"),
        ([], f"gave a list of 0; {INDICES}"),
        ([np.arange(0)], rf"gave a list of 1 \(int64 \[0\]\); {INDICES}"),
        (np.arange(3), rf"gave a list of 3 \(int64 \[\], int64 \[\], int64 \[\]\); {INDICES}"),
        ([1, 2], rf"gave a list of 2 \(a int, a int\); {INDICES}"),
        ([[1, 2], [[3], [4, 5]]], f"gave a list of 2 .*; {INDICES}"),
        ([np.arange(3.0)], rf"gave a list of 1 \(float64 \[3\]\); {INDICES}"),
        ([np.arange(995, 1_005)], f"gave indices 995 to 1004; {INDICES}"),
        ([np.arange(-1, 3)], f"gave indices -1 to 2; {INDICES}"),
    ],
)
def test_an_order_that_cannot_be_taken_is_refused_in_a_sentence(given: Any, says: str, small: Path) -> None:
    constructor = DataLoader.__init__
    with pytest.raises(InputError, match=rf"^order\(0\) {says}$"):
        make_trainer(max_epochs=1).fit(LitMNIST(), MNISTDataModule(small, verify_data=False, order=lambda epoch: given))
    assert (
        DataLoader.__init__ is constructor
    )  # which Lightning (2.6.6) leaves patched after an error in a dataloader hook


def test_an_order_may_be_a_generator_but_not_a_list_nor_of_changing_length(small: Path) -> None:
    def fit(order: Any, **flags: Any) -> int:
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, **flags)
        trainer.fit(LitMNIST(), MNISTDataModule(small, verify_data=False, order=order))
        return trainer.global_step

    assert fit(lambda epoch: (np.arange(start, start + 10) for start in range(0, 50, 10))) == 10
    with pytest.raises(InputError, match=r"^order is a list of 1 .*; expected a function"):
        fit([np.arange(10)])
    with pytest.raises(
        InputError, match=r"^the order of epoch 1 has 4 batches, expected 3 as before; a Trainer takes others with"
    ):
        fit(lambda epoch: [np.arange(10)] * (3 + epoch))
    assert fit(lambda epoch: [np.arange(10)] * (3 + epoch), reload_dataloaders_every_n_epochs=1) == 3 + 4
    data = MNISTDataModule(small, verify_data=False, order=lambda epoch: [np.arange(2), np.arange(3), np.arange(2)])
    data.setup()
    with pytest.raises(InputError, match=r"^order\(0\): a batch is 3 images, which do not divide among 2 devices$"):
        data.check_batches(2)


def test_predictions_that_are_not_of_the_data_modules_batches_are_refused(small: Path) -> None:
    data = MNISTDataModule(small, verify_data=False)
    with pytest.raises(InputError, match=r"^gather: this data module has no Trainer"):
        data.gather([torch.zeros(200, 10)])
    (whole,) = make_trainer().predict(LitMNIST(), data)
    for wrong in (None, [], whole, [whole[:7]], [whole, whole], [whole.numpy()]):
        with pytest.raises(InputError, match=r"^gather: predictions are .*; expected what this device has predicted"):
            data.gather(wrong)


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_predictions_of_some_images_in_an_order_of_their_own_are_gathered(limit: float, small: Path) -> None:
    class Some(MNISTDataModule):
        def test_order(self, epoch: int) -> list[np.ndarray]:
            return np.split(100 + np.random.default_rng(epoch).permutation(80), 4)

    module, data = LitMNIST(), Some(small, verify_data=False)
    trainer = make_trainer(max_epochs=2, limit_val_batches=0, limit_predict_batches=limit)
    trainer.fit(module, data)  # so that Lightning asks for the order of epoch 2
    found = data.gather(trainer.predict(module, data))
    images = np.sort(np.concatenate(data.test_order(2)[: int(4 * limit)]))
    expected = module(data.test.tensors[0][images]).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_subclass_may_bring_data_of_its_own(small: Path) -> None:
    class Own(MNISTDataModule):
        def setup(self, stage: str | None = None) -> None:
            self.train = TensorDataset(*read(small))

    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(LitMNIST(), Own(order=lambda epoch: [np.arange(100)] * 2))
    assert trainer.global_step == 2


def test_outside_of_a_trainer_the_data_modules_batches_can_be_looked_at(small: Path) -> None:
    data = MNISTDataModule(small, batch_size=300, validation_images=100, verify_data=False)
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [300, 300, 300]
    images, labels = batches[0]
    assert (images.dtype, images.shape[1:], labels.dtype) == (torch.uint8, (1, 28, 28), torch.int64)
    assert [len(labels) for _, labels in data.val_dataloader()] == [100]
    assert [len(labels) for _, labels in data.test_dataloader()] == [200]
    assert LitMNIST()(images).shape == (300, 10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"validation_images": 1_000}, "^validation_images=1000: there are 1000 training images"),
        ({"data_dir": __file__}, "^data_dir='.*test_trainer.py': a file"),
    ],
)
def test_an_error_of_the_data_module_speaks_of_its_arguments(arguments: dict[str, Any], says: str, small: Path) -> None:
    with pytest.raises(InputError, match=says):
        MNISTDataModule(**{"data_dir": small, "verify_data": False} | arguments).setup()


# torch.compile


class Compiler:
    """A backend of torch.compile that runs what it is given as it is, and counts after how many steps it was asked."""

    def __init__(self) -> None:
        self.steps = 0
        self.asked: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.asked.append(self.steps)
        return graph.forward


class CountSteps(L.Callback):
    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler

    def on_train_batch_end(self, *_: object) -> None:
        self.compiler.steps += 1

    def on_predict_batch_end(self, *_: object) -> None:
        self.compiler.steps += 1


def test_a_compiled_module_is_not_compiled_again_after_the_first_steps(small: Path) -> None:
    def fit(module: Any, *callbacks: L.Callback) -> torch.Tensor:
        data = MNISTDataModule(small, batch_size=300, verify_data=False)  # 300, 300, 300 and 100
        trainer = make_trainer(*callbacks, max_epochs=4, limit_val_batches=0)
        trainer.fit(module, data)
        return trainer.callback_metrics["train_loss"]

    compiler = Compiler()
    L.seed_everything(0, verbose=False)
    compiled = fit(torch.compile(LitMNIST(), backend=compiler), CountSteps(compiler))
    assert compiler.asked
    assert max(compiler.asked) <= 4  # the first steps of both sizes, and of the second epoch
    L.seed_everything(0, verbose=False)
    assert torch.equal(compiled, fit(LitMNIST(fused=False)))  # compiled are the layers


def test_a_module_that_compiles_its_call_is_not_compiled_again_after_the_first_batches(small: Path) -> None:
    compiler, module, data = Compiler(), LitMNIST(), MNISTDataModule(small, verify_data=False)
    data.setup()
    module.compile(backend=compiler)
    loader = DataLoader(data.train, batch_size=300)  # 300, 300, 300 and 100
    trainer = make_trainer(CountSteps(compiler))
    predictions = [torch.cat(trainer.predict(module, loader)) for _ in range(2)]
    assert compiler.asked
    assert max(compiler.asked) <= 3
    with torch.no_grad():
        torch.testing.assert_close(predictions[1], LitMNIST.forward(module, data.train.tensors[0]))


def test_a_step_of_the_optimizer_is_not_compiled_again(small: Path) -> None:
    """For each step, whose number it needs, until torch gives up."""
    compiler, (images, labels) = Compiler(), read(small, train=False)
    module = LitMNIST()
    optimizer = module.configure_optimizers()
    step = torch.compile(optimizer.step, backend=compiler)
    for compiler.steps in range(4):
        module.training_step((images, labels), 0).backward()
        step()
    assert max(compiler.asked, default=0) <= 1
    assert optimizer.param_groups[0]["t"] == 4


# Checkpoints and callbacks of Lightning


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it is that of the run
def test_lightnings_own_checkpoints_work_as_its_users_expect(small: Path, tmp_path: Path) -> None:
    def run(epochs: int, name: str, **fit: Any) -> tuple[L.Trainer, LitMNIST, MNISTDataModule]:
        best = ModelCheckpoint(tmp_path / name, "best", monitor="val_loss", save_last=True)
        L.seed_everything(0, verbose=False)
        trainer = make_trainer(best, EarlyStopping("val_loss", patience=9), max_epochs=epochs)
        module = LitMNIST()
        data = MNISTDataModule(small, validation_images=120, verify_data=False)
        trainer.fit(module, data, **fit)
        return trainer, module, data

    trainer, whole, data = run(3, "whole")
    (best,) = trainer.test(datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    (last,) = trainer.test(datamodule=data, ckpt_path="last", weights_only=True, verbose=False)
    loaded = LitMNIST.load_from_checkpoint(tmp_path / "whole" / "last.ckpt", weights_only=True)
    (again,) = make_trainer().test(loaded, data, verbose=False)
    assert last == again
    assert best.keys() == last.keys()

    run(1, "begun")
    trainer, resumed, _ = run(3, "begun", ckpt_path=tmp_path / "begun" / "last.ckpt", weights_only=True)
    assert trainer.global_step == 27
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_best_of_a_training_that_ends_within_an_epoch_is_saved(small: Path, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer = make_trainer(best, max_steps=13, limit_val_batches=0)
    trainer.fit(LitMNIST(), MNISTDataModule(small, verify_data=False))
    assert Path(best.best_model_path).is_file()
    assert best.best_model_score == trainer.callback_metrics["train_loss"]


LIMIT, ACCUMULATE, OVERFIT = {"limit_train_batches": 7}, {"accumulate_grad_batches": 3}, {"overfit_batches": 5}


class OneCycle(LitMNIST):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)  # for which Lightning makes the loader
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps, cycle_momentum=False)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class WithoutSuper(OneCycle):
    """Leaves the loader to the data module, as a module that is not ours does."""

    def on_train_start(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # overfit_batches asks for validation
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize(
    ("batches", "kind", "flags"),
    [
        *((batches, "", {}) for batches in (4, 10)),
        *((batches, "", LIMIT) for batches in (4, 7)),
        *((batches, "", ACCUMULATE) for batches in (6, 10)),
        *((batches, "", OVERFIT) for batches in (3, 5)),
        # A loader without a state would begin its epoch anew: with the last batch.
        (10, "foreign loader", {}),
        (7, "foreign loader", LIMIT),
        (10, "foreign loader", ACCUMULATE),
        (4, "schedule", {}),
        (4, "schedule, loader by hand", {}),
        (4, "schedule, without super", {}),
    ],
)
def test_a_training_resumes_from_the_checkpoint_of_any_step(
    batches: int, kind: str, flags: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    """Within an epoch of ten batches, or with its last one: it ends as one that was never interrupted."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.fit_loop.total_batch_idx + 1 == batches:
                trainer.save_checkpoint(tmp_path / "step.ckpt")

    def run(*callbacks: L.Callback, **fit: Any) -> tuple[L.Trainer, LitMNIST]:
        L.seed_everything(0, verbose=False)
        own = WithoutSuper if "without super" in kind else OneCycle
        module = own() if "schedule" in kind else LitMNIST()
        trainer = make_trainer(*callbacks, max_epochs=3, limit_val_batches=0, **flags)
        data: Any = MNISTDataModule(small, verify_data=False)
        if kind == "foreign loader":
            data = DataLoader(TensorDataset(*read(small)), batch_size=100)
        if "by hand" in kind:
            data = data.train_dataloader()
        trainer.fit(module, data, **fit)
        return trainer, module

    trainer, whole = run(Save())
    resumed, module = run(ckpt_path=tmp_path / "step.ckpt", weights_only=True)
    assert resumed.global_step == trainer.global_step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))
    assert resumed.callback_metrics == trainer.callback_metrics


@pytest.mark.filterwarnings(r"ignore:.*fit\(ckpt_path=:UserWarning")  # Lightning looks for a last one
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_after_backward", "on_train_batch_end"])
def test_a_training_that_failed_within_a_batch_goes_on_with_that_batch(hook: str, small: Path, tmp_path: Path) -> None:
    class Fails(L.Callback):
        fails = False

        def __init__(self) -> None:
            self.epochs: list[dict[str, torch.Tensor]] = []

        def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
            self.epochs.append(dict(trainer.callback_metrics))

    def fail(callback: Fails, trainer: L.Trainer, *_: object) -> None:
        if callback.fails and trainer.global_step >= 14:
            raise RuntimeError("on purpose")

    setattr(Fails, hook, fail)

    def run(callback: Fails, **fit: Any) -> tuple[L.Trainer, LitMNIST]:
        L.seed_everything(0, verbose=False)
        module = LitMNIST()
        trainer = make_trainer(callback, OnExceptionCheckpoint(tmp_path, "failed"), max_epochs=3)
        trainer.fit(module, MNISTDataModule(small, validation_images=100, verify_data=False), **fit)
        return trainer, module

    trainer, whole = run(never := Fails())
    failing = Fails()
    failing.fails = True
    with pytest.raises(RuntimeError, match="on purpose"):
        run(failing)
    resumed, module = run(after := Fails(), ckpt_path=tmp_path / "failed.ckpt", weights_only=True)
    assert resumed.global_step == trainer.global_step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))
    assert resumed.callback_metrics == trainer.callback_metrics
    assert after.epochs == never.epochs[1:]  # that of the failure, too


@pytest.mark.filterwarnings(r"ignore:.*fit\(ckpt_path=:UserWarning")  # Lightning looks for a last one
def test_a_checkpoint_of_a_device_that_failed_does_not_wait_for_the_others(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(LitMNIST):
        def on_after_backward(self) -> None:
            if self.global_step == 3:
                monkeypatch.setattr(self.trainer.strategy, "reduce", lambda *_, **__: pytest.fail("waits"))
                raise RuntimeError("on purpose")

    trainer = make_trainer(OnExceptionCheckpoint(tmp_path, "failed"), max_epochs=1)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Failing(), MNISTDataModule(small, validation_images=100, verify_data=False))
    assert torch.load(tmp_path / "failed.ckpt", weights_only=True)["train_averages"][:, 2].tolist() == [300]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it is that of the run
def test_from_the_validation_at_an_epochs_end_training_resumes_with_the_epochs_figures(
    small: Path, tmp_path: Path
) -> None:
    def fit(**resume: Any) -> L.Trainer:
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
        figures = ModelCheckpoint(tmp_path / "best", monitor="train_loss")
        trainer = make_trainer(saved, figures, EarlyStopping("train_loss", patience=9), max_epochs=3)
        L.seed_everything(0, verbose=False)
        trainer.fit(LitMNIST(), MNISTDataModule(small, validation_images=200, verify_data=False), **resume)
        return trainer

    whole = fit()
    resumed = fit(ckpt_path=tmp_path / "step=16.ckpt", weights_only=True)
    assert resumed.callback_metrics == whole.callback_metrics
    assert resumed.global_step == whole.global_step


def test_a_resumed_training_with_nothing_left_to_do_leaves_no_sums_to_the_next(small: Path, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "4.ckpt")

    def fit(module: LitMNIST, *callbacks: L.Callback, steps: int = -1, **resume: Any) -> None:
        trainer = make_trainer(*callbacks, max_epochs=1, max_steps=steps, limit_val_batches=0)
        trainer.fit(module, MNISTDataModule(small, verify_data=False), **resume)

    module = LitMNIST()
    fit(LitMNIST(), Save())
    fit(module, steps=4, ckpt_path=tmp_path / "4.ckpt", weights_only=True)
    fit(module)
    assert module.train_averages.sums[2] == 1_000


OTHERS = [{"batch_size": 50}, {"batch_size": 500}, {"seed": 1}, {"order": lambda epoch: [np.arange(100)] * 10}]


@pytest.mark.parametrize("other", OTHERS)
def test_within_an_epoch_a_training_resumes_with_its_own_batches_only(
    other: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step in (4, 10):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def fit(*callbacks: L.Callback, data: dict[str, Any], **fit: Any) -> None:
        trainer = make_trainer(*callbacks, max_epochs=2, limit_val_batches=0)
        trainer.fit(LitMNIST(), MNISTDataModule(small, verify_data=False, **data), weights_only=True, **fit)

    fit(Save(), data={})
    with pytest.raises(
        InputError, match=r"^the checkpoint is from within an epoch of other batches; give the batch_size"
    ):
        fit(data=other, ckpt_path=tmp_path / "4.ckpt")
    fit(data=other, ckpt_path=tmp_path / "10.ckpt")  # of the end of an epoch


def test_a_checkpoint_of_several_devices_serves_one_and_the_other_way_round(small: Path, tmp_path: Path) -> None:
    module, data = LitMNIST(), MNISTDataModule(small, verify_data=False)
    trainer = make_trainer(max_steps=4, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    row = checkpoint["train_averages"][0]
    for rows in ([row / 4, 3 * row / 4], [row]):
        checkpoint["train_averages"] = torch.stack(rows)
        loaded, other = LitMNIST(), make_trainer()
        other.strategy.connect(loaded)
        loaded.trainer = other
        loaded.on_load_checkpoint(checkpoint)
        assert loaded.train_averages.sums.tolist() == row.tolist()


def test_a_checkpoint_in_16_bits_trains_on_in_32(small: Path, tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=1, precision="bf16-true")
    trainer.fit(LitMNIST(), MNISTDataModule(small, validation_images=100, verify_data=False))
    trainer.save_checkpoint(tmp_path / "16.ckpt")
    assert LitMNIST.load_from_checkpoint(tmp_path / "16.ckpt", weights_only=True).dtype == torch.float32


def test_a_checkpoint_in_64_bits_is_not_rounded_to_32(small: Path, tmp_path: Path) -> None:
    def run(epochs: int, **fit: Any) -> tuple[L.Trainer, LitMNIST]:
        L.seed_everything(0, verbose=False)
        module = LitMNIST()
        trainer = make_trainer(max_epochs=epochs, precision="64-true", limit_val_batches=0)
        trainer.fit(module, MNISTDataModule(small, verify_data=False), **fit)
        return trainer, module

    trainer, module = run(1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = LitMNIST.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    _, whole = run(2)
    _, resumed = run(2, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for ours, theirs in ((loaded, module), (resumed, whole)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("epochs", [1, 3])
def test_more_epochs_after_a_finished_training_report_as_one_whole(epochs: int, small: Path, tmp_path: Path) -> None:
    """Whose checkpoint was saved after `fit`, when Lightning counts the next epoch already."""

    def run(epochs: int, **fit: Any) -> L.Trainer:
        L.seed_everything(0, verbose=False)
        trainer = make_trainer(max_epochs=epochs, limit_val_batches=0)
        trainer.fit(LitMNIST(), MNISTDataModule(small, verify_data=False), **fit)
        return trainer

    run(epochs).save_checkpoint(tmp_path / "last.ckpt")
    resumed = run(epochs + 1, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.callback_metrics == run(epochs + 1).callback_metrics


# What people do with classes that they lift out


class WithState(LitMNIST):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))


def test_a_subclass_with_a_state_of_its_own_loads(small: Path, tmp_path: Path) -> None:
    trainer, module = make_trainer(max_steps=1, limit_val_batches=0), WithState()
    trainer.fit(module, MNISTDataModule(small, verify_data=False))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = WithState.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))


class OwnStep(LitMNIST):
    """Counts no images, and logs a loss of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss


def test_a_step_of_ones_own_keeps_what_it_logs(small: Path) -> None:
    trainer = make_trainer(EarlyStopping("train_loss", patience=9), max_epochs=2, limit_val_batches=0)
    trainer.fit(OwnStep(), MNISTDataModule(small, verify_data=False))
    assert trainer.callback_metrics["train_loss"].isfinite()
    assert "train_accuracy" not in trainer.callback_metrics


class OwnModel(LitMNIST):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


def test_a_model_of_ones_own_can_take_the_place_of_ours(small: Path) -> None:
    trainer, module, data = make_trainer(max_epochs=1), OwnModel(), MNISTDataModule(small, 100, 100, verify_data=False)
    module.example_input_array = torch.zeros(2, 1, 28, 28)
    trainer.fit(module, data)
    summary = ModelSummary(module)
    assert summary.out_sizes == [[2, 10]]
    assert trainer.callback_metrics["val_accuracy"] > 0.5


def test_a_callback_that_looks_at_each_step_sees_that_step(small: Path, tmp_path: Path) -> None:
    class Seen(L.Callback):
        def __init__(self) -> None:
            self.pairs: list[tuple[float, float]] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: object) -> None:
            self.pairs.append((outputs["loss"].item(), trainer.callback_metrics["train_loss_step"].item()))

    seen = Seen()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        limit_val_batches=0,
        callbacks=[seen],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(LitMNIST(), MNISTDataModule(small, verify_data=False))
    assert len(seen.pairs) == 10
    assert all(step == pytest.approx(loss, rel=1e-6) for loss, step in seen.pairs)


def test_a_data_module_can_be_changed_between_two_trainings_and_pickled(small: Path) -> None:
    data = MNISTDataModule(small, validation_images=100, verify_data=False)
    make_trainer(max_epochs=1).fit(LitMNIST(), data)
    assert len(
        pickle.loads(pickle.dumps(MNISTDataModule(small, validation_images=100, verify_data=False).val_dataloader()))
    )
    data.validation_images = 250
    data.setup()
    assert (len(data.validation_indices), len(data.train_indices)) == (250, 750)


def test_where_a_tested_checkpoint_stood_is_not_where_the_next_training_begins(small: Path, tmp_path: Path) -> None:
    data = MNISTDataModule(small, validation_images=100, verify_data=False)
    fourth = ModelCheckpoint(tmp_path, "fourth", every_n_train_steps=4)
    trainer = make_trainer(fourth, max_epochs=1, limit_train_batches=5)
    trainer.fit(LitMNIST(), data)
    module = LitMNIST()
    trainer.test(module, data, ckpt_path=tmp_path / "fourth.ckpt", weights_only=True, verbose=False)
    assert sum(len(images) for images, _ in data.train_dataloader()) == 900
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    assert trainer.global_step == 9
    assert module.train_averages.sums[2] == 900


@pytest.mark.parametrize(("finished", "images"), [(False, 500), (True, 1_000)])
def test_a_trainer_that_is_done_takes_no_share_of_what_is_asked_for_later(
    finished: bool, images: int, small: Path
) -> None:
    data = MNISTDataModule(small, verify_data=False)
    data.setup()
    state, cpu = SimpleNamespace(finished=finished), SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(state=state, interrupted=False, global_rank=0, world_size=2, overfit_batches=0)
    trainer.fit_loop = make_trainer().fit_loop
    trainer.strategy, data.trainer = cpu, trainer
    assert sum(len(images) for images, _ in data.train_dataloader()) == images


def test_where_a_trainer_that_is_done_stood_is_not_where_a_loader_of_later_stands(small: Path) -> None:
    data = MNISTDataModule(small, validation_images=100, verify_data=False)
    make_trainer(max_epochs=1, limit_train_batches=5).fit(LitMNIST(), data)
    loader: Any = data.train_dataloader()
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    assert loader.state_dict()["batches"] == 7


def test_labels_that_are_not_quite_one_hot_count_by_their_largest(small: Path) -> None:
    images, labels = read(small, train=False)
    soft = one_hot(labels, 10) * 0.9 + 0.01
    (tested,), (expected,) = (
        make_trainer().test(LitMNIST(), DataLoader(TensorDataset(images, given), 100), verbose=False)
        for given in (soft, labels)
        if L.seed_everything(0, verbose=False) == 0
    )
    assert tested["test_accuracy"] == expected["test_accuracy"]


HOOKS = ["setup", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_validation_epoch_start"]


@pytest.mark.parametrize("hook", [*HOOKS, "on_test_epoch_start", "on_save_checkpoint"])
def test_a_hook_of_ones_own_needs_no_super(hook: str, small: Path) -> None:
    """As no hook of a LightningModule does: what is reported stays right, the second time, too."""

    def reported(base: type[LitMNIST]) -> dict[str, Any]:
        L.seed_everything(0, verbose=False)
        module, data = base(), MNISTDataModule(small, validation_images=100, verify_data=False)
        trainer = make_trainer(max_epochs=2)
        trainer.fit(module, data)
        metrics = dict(trainer.callback_metrics)
        for _ in range(2):
            trainer.test(module, data, verbose=False)
        return metrics | trainer.callback_metrics

    own = type("Own", (LitMNIST,), {hook: lambda self, *_, **__: None})
    assert reported(own) == reported(LitMNIST)


def test_a_loss_of_each_image_is_refused(small: Path) -> None:
    class OfEach(LitMNIST):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    says = r"^the loss is float32 \[5\]; expected the mean over the images of a batch, a tensor \[\]$"
    with pytest.raises(InputError, match=says):
        OfEach().training_step((IMAGES, CLASSES), 0)


def test_a_model_of_another_number_of_classes_is_refused() -> None:
    module = LitMNIST()
    module.model.output = torch.nn.Linear(128, 26)
    with pytest.raises(InputError, match=r"^the model gives \[5, 26\] for labels \[5, 10\]; expected 10 classes$"):
        module.training_step((IMAGES, CLASSES), 0)


@pytest.mark.parametrize("learning_rate", [-1, "fast", None, float("nan")])
def test_a_wrong_learning_rate_is_named(learning_rate: Any) -> None:
    with pytest.raises(InputError, match=r"^learning_rate=.*: expected a number from 0 up$"):
        LitMNIST(learning_rate)


@pytest.mark.filterwarnings("ignore:.*to_torchscript.*deprecated", "ignore:.*torch.jit.trace.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_of_torchscript_only_tracing_is_offered() -> None:
    module, images = LitMNIST().eval(), torch.rand(3, 1, 28, 28)
    with pytest.raises(InputError, match='give method="trace" and example_inputs'):
        module.to_torchscript()
    traced = module.to_torchscript(method="trace", example_inputs=images[:2])
    assert torch.allclose(traced(images), module(images), atol=1e-6)


def test_a_learning_rate_of_numpy_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=0)
    trainer.strategy.connect(LitMNIST(np.float64(0.5)))
    trainer.save_checkpoint(tmp_path / "numpy.ckpt")
    assert LitMNIST.load_from_checkpoint(tmp_path / "numpy.ckpt", weights_only=True).hparams["learning_rate"] == 0.5


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"batch_size": 32.0}, {"validation_images": -1}, {"seed": -1}]
)
def test_a_wrong_argument_of_the_data_module_is_named(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"^{name}={value}: expected a whole number from"):
        MNISTDataModule(**arguments)
    data = MNISTDataModule()
    setattr(data, name, value)  # as a finder of batch sizes does
    with pytest.raises(InputError, match=f"^{name}={value}: expected a whole number from"):
        data.setup()

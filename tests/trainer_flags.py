"""Arguments of Lightning's Trainer, each tried on small data with the port as it is.

As a command, by several processes together: python trainer_flags.py DATA_DIR DIRECTORY, started by torchrun.
"""

import math
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lit_mnist import LitMNIST, MNISTDataModule
from lit_mnist.errors import InputError


class Outcome(NamedTuple):
    """Of a training: its steps, and what was logged."""

    steps: int
    metrics: dict[str, torch.Tensor]
    logged: set[str]


Check = Callable[[Outcome], bool]
EPOCHS, BATCHES = 2, 9  # 880 images in batches of 100


def steps(number: int) -> Check:
    return lambda outcome: outcome.steps == number


# Arguments, and what has to be true afterwards; everything reports the training's loss and accuracy.
FLAGS: dict[str, tuple[dict[str, Any], Check]] = {
    "none": ({}, steps(EPOCHS * BATCHES)),
    "overfit_batches": ({"overfit_batches": 5}, steps(EPOCHS * 5)),
    "limit_train_batches": ({"limit_train_batches": 3}, steps(EPOCHS * 3)),
    "share of limit_train_batches": ({"limit_train_batches": 0.5}, steps(EPOCHS * 4)),
    "limit_val_batches": ({"limit_val_batches": 1}, steps(EPOCHS * BATCHES)),
    "no validation": ({"limit_val_batches": 0}, lambda outcome: "val_loss" not in outcome.metrics),
    "limit_test_batches": ({"limit_test_batches": 1}, steps(EPOCHS * BATCHES)),
    "max_steps": ({"max_steps": 7}, steps(7)),
    "max_steps beyond an epoch": ({"max_steps": 11}, steps(11)),
    "max_time": ({"max_time": timedelta(seconds=0.3), "max_epochs": 10_000}, lambda outcome: outcome.steps > 0),
    "min_epochs": ({"min_epochs": 2}, steps(EPOCHS * BATCHES)),
    "val_check_interval": ({"val_check_interval": 2}, steps(EPOCHS * BATCHES)),
    "share of val_check_interval": ({"val_check_interval": 0.25}, steps(EPOCHS * BATCHES)),
    "val_check_interval across epochs": (
        {"val_check_interval": 12, "check_val_every_n_epoch": None},
        steps(EPOCHS * BATCHES),
    ),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 2}, steps(EPOCHS * BATCHES)),
    "num_sanity_val_steps": ({"num_sanity_val_steps": -1}, steps(EPOCHS * BATCHES)),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 4}, steps(EPOCHS * math.ceil(BATCHES / 4))),
    "gradient_clip_val": ({"gradient_clip_val": 0.1}, steps(EPOCHS * BATCHES)),
    "gradient_clip_algorithm": (
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        steps(EPOCHS * BATCHES),
    ),
    "precision 64-true": ({"precision": "64-true"}, steps(EPOCHS * BATCHES)),
    "precision bf16-true": ({"precision": "bf16-true"}, steps(EPOCHS * BATCHES)),
    "precision bf16-mixed": ({"precision": "bf16-mixed"}, steps(EPOCHS * BATCHES)),
    "deterministic": ({"deterministic": True}, steps(EPOCHS * BATCHES)),
    "benchmark": ({"benchmark": True}, steps(EPOCHS * BATCHES)),
    "detect_anomaly": ({"detect_anomaly": True}, steps(EPOCHS * BATCHES)),
    "simple profiler": ({"profiler": "simple"}, steps(EPOCHS * BATCHES)),
    "advanced profiler": ({"profiler": "advanced"}, steps(EPOCHS * BATCHES)),
    "reload_dataloaders_every_n_epochs": ({"reload_dataloaders_every_n_epochs": 1}, steps(EPOCHS * BATCHES)),
    "use_distributed_sampler": ({"use_distributed_sampler": False}, steps(EPOCHS * BATCHES)),
    "inference_mode": ({"inference_mode": False}, steps(EPOCHS * BATCHES)),
    "fast_dev_run": ({"fast_dev_run": 2}, steps(2)),
    "log_every_n_steps": (
        {"log_every_n_steps": 1},
        lambda outcome: outcome.logged >= {"train_loss_step", "train_accuracy_step", "train_loss", "val_accuracy"},
    ),
    # It takes hardly any other argument, and logs nothing.
    "barebones": ({"barebones": True, "max_epochs": EPOCHS, "accelerator": "cpu"}, steps(EPOCHS * BATCHES)),
}


def attempt(data_dir: Path, directory: Path, flags: dict[str, Any]) -> Outcome:
    """Train, validate, test and predict."""
    defaults = {
        "max_epochs": EPOCHS,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": directory,
        "logger": CSVLogger(directory) if "log_every_n_steps" in flags else False,
    }
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(**flags if "barebones" in flags else defaults | {"accelerator": "cpu"} | flags)
    data = MNISTDataModule(data_dir, batch_size=100, validation_images=120, verify_data=False)
    module = LitMNIST()
    trainer.fit(module, data)
    outcome = Outcome(trainer.global_step, dict(trainer.callback_metrics), set(trainer.logged_metrics))
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return outcome


def check(data_dir: Path, directory: Path, name: str, **more: Any) -> None:
    """Try one of the arguments.

    Raises:
        AssertionError: if another number of steps was taken, or nothing reported.
    """
    flags, holds = FLAGS[name]
    outcome = attempt(data_dir, directory, flags | more)
    assert holds(outcome), outcome
    if "barebones" not in flags:
        assert outcome.metrics.keys() >= {"train_loss", "train_accuracy"}, outcome


def check_shares(data_dir: Path) -> None:
    """Look at what two devices do with batches that cannot be shared out, and with a loader made without a Trainer.

    Raises:
        AssertionError: if an image is missed, seen twice or weighs more than another.
    """
    trainer = L.Trainer(devices=2, accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match="75 images, which do not divide among 2 devices"):
        trainer.fit(LitMNIST(), MNISTDataModule(data_dir, batch_size=75, verify_data=False))

    class Seen(L.Callback):
        images = 0.0

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, _: int) -> None:
            self.images += float(batch[0].double().sum())

    files = MNISTDataModule(data_dir, verify_data=False)
    loader, seen = files.train_dataloader(), Seen()
    flags = {"devices": 2, "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(callbacks=[seen], limit_val_batches=0, enable_checkpointing=False, **flags)
    trainer.fit(LitMNIST(), loader)
    everyone = float(trainer.strategy.reduce(torch.tensor(seen.images, dtype=torch.float64), reduce_op="sum"))
    assert everyone == float(files.train.tensors[0].double().sum()), everyone

    def odd(epoch: int) -> list[np.ndarray]:
        return [np.arange(2), np.arange(3 if epoch else 2), np.arange(2)]

    trainer = L.Trainer(enable_checkpointing=False, **flags | {"max_epochs": 2})
    with pytest.raises(InputError, match=r"order\(1\): a batch is 3 images, which do not divide among 2 devices"):
        trainer.fit(LitMNIST(), MNISTDataModule(data_dir, verify_data=False, order=odd))

    # One image is held out: one of the devices has none of it.
    data = MNISTDataModule(data_dir, batch_size=2, validation_images=1, verify_data=False)
    data.order = lambda epoch: [np.arange(2), np.arange(2, 4)]
    trainer = L.Trainer(enable_checkpointing=False, **flags)
    trainer.fit(LitMNIST(), data)
    assert all(value.isfinite() for value in trainer.callback_metrics.values()), trainer.callback_metrics


def main() -> None:
    failures = []
    check_shares(Path(sys.argv[1]))
    for name in FLAGS:
        try:
            check(Path(sys.argv[1]), Path(sys.argv[2]), name, devices=2)
        except Exception:
            failures.append(f"{name}: {traceback.format_exc()}")
    torch.distributed.destroy_process_group()  # its threads may abort a process that ends (pytorch#190489)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""On a GPU: the same training, with the images in its memory and no waiting for it within a step."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from commands import Flags, Training
from conftest import results

from keras_ref.parity import check_port
from keras_ref.parity.golden import SHIPPED
from lit_mnist import LitMNIST, MNISTDataModule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device that torch can use"),
]


def make_gpu_trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=8,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_gpus_train_as_a_cpu_does(devices: int, tmp_path: Path, data_dir: Path) -> None:
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA devices, there are {torch.cuda.device_count()}")
    flags: Flags = {"precision": "64-true", "max_epochs": 2, "limit_train_batches": 12, "data_dir": data_dir}
    flags |= {"output_dir": tmp_path}
    for name, more in (("cpu", {}), ("gpu", {"devices": devices})):
        process = Training(flags | {"accelerator": name, "run_name": name} | more)
        assert process.finish() == (0, "")
    assert results(tmp_path / "gpu") == pytest.approx(results(tmp_path / "cpu"), rel=1e-9)


def test_the_ladder_holds_on_a_gpu() -> None:
    result = check_port("lit_mnist:LitMNIST", steps=60, accelerator="gpu", import_golden=str(SHIPPED))
    result.raise_if_failed()


def test_the_images_are_in_its_memory(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir)
    data.trainer = make_gpu_trainer()
    data.setup()
    for loader in (data.train_dataloader(), data.test_dataloader()):
        assert all(tensor.is_cuda for tensor in next(iter(loader)))
    assert not any(tensor.is_cuda for tensor in data.test.tensors)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_never_waits_for_it(data_dir: Path) -> None:
    class Forbid(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("error" if 2 <= batch_idx < 6 else "default")

    try:
        make_gpu_trainer(Forbid()).fit(LitMNIST(), MNISTDataModule(data_dir))
    finally:
        torch.cuda.set_sync_debug_mode("default")

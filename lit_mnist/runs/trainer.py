"""The Trainer that the flags of a command ask for."""

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from lit_mnist.errors import InputError
from lit_mnist.runs.checkpoints import WholeFiles


def choose_devices(accelerator: str, devices: int | str) -> tuple[str, int]:
    """Say what "auto" stands for: a GPU if there is one; all of them, or the processes of torchrun, or one."""
    if accelerator == "auto":
        mps = torch.backends.mps.is_available()
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if devices == "auto":
        gpus = torch.cuda.device_count() if accelerator == "gpu" else 1
        devices = os.environ.get("LOCAL_WORLD_SIZE", max(gpus, 1))
    return accelerator, int(devices)


def make_trainer(
    flags: Mapping[str, Any],
    accelerator: str,
    devices: int,
    run_directory: Path,
    callbacks: list[L.Callback],
    show_progress: bool,
) -> L.Trainer:
    """Return the Trainer that flags named as those of Lightning's ask for.

    Raises:
        InputError: if this machine cannot do what they ask for.
    """
    several = devices * flags["num_nodes"] > 1 or flags["strategy"] == "ddp"
    try:
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=flags["num_nodes"],
            strategy=DDPStrategy(timeout=timedelta(seconds=flags["timeout"])) if several else "auto",
            precision=flags["precision"],
            max_epochs=flags["max_epochs"],
            fast_dev_run=flags["fast_dev_run"],
            limit_train_batches=flags["limit_train_batches"],
            deterministic=flags["deterministic"],
            logger=flags["logger"] == "tensorboard" and _tensorboard_logger(run_directory),
            default_root_dir=run_directory,  # Lightning takes up hpc_ckpt_*.ckpt from there
            callbacks=callbacks,
            plugins=[WholeFiles()],
            limit_val_batches=None if flags["validation_images"] else 0,
            num_sanity_val_steps=0,
            enable_progress_bar=show_progress,
            enable_model_summary=False,  # it rounds the counts; layer_table does not
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, KeyError, RuntimeError) as error:
        names = ("accelerator", "devices", "strategy", "precision", "logger")
        asked = " ".join(f"--{name} {flags[name]}" for name in names)
        reason = " ".join(str(error).split())
        raise InputError(f"{asked}: {reason} (--accelerator auto takes what this machine has)") from error
    if trainer.precision != flags["precision"]:  # on a CPU, Lightning takes bf16-mixed for 16-mixed
        raise InputError(f"--precision {flags['precision']}: {accelerator} has {trainer.precision} instead")
    return trainer


def _tensorboard_logger(run_directory: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    # TensorBoard's own switch ("no TensorFlow"): it would load TensorFlow where that is installed, log lines and all.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    return TensorBoardLogger(run_directory.parent, name=run_directory.name, version="tensorboard")

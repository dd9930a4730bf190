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
from lit_mnist.runs.command import check_installed


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
            logger=_make_logger(flags["logger"], run_directory),
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


def make_tester(accelerator: str, precision: Any) -> L.Trainer:
    """Return a Trainer that tests and predicts on one device, shows nothing and writes nothing.

    Raises:
        InputError: if this machine cannot do it.
    """
    kind, _ = choose_devices(accelerator, 1)
    try:
        trainer = L.Trainer(
            accelerator=kind,
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        asked = f"--accelerator {accelerator} --precision {str(precision)[:40]}"
        raise InputError(f"{asked}: {reason} (--accelerator auto takes what this machine has)") from error
    if trainer.precision != precision:  # on a CPU, Lightning takes bf16-mixed for 16-mixed
        raise InputError(f"--precision {precision}: {kind} has {trainer.precision} instead")
    return trainer


def _make_logger(name: str, run_directory: Path) -> Any:
    """Return the logger of Lightning's that `--logger` asks for; False for csv and none, which need none of them."""
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        check_installed("--logger tensorboard", "tensorboard", "tensorboard")
        # TensorBoard's own switch ("no TensorFlow"): it would load TensorFlow where that is installed, log lines, too.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        return TensorBoardLogger(run_directory.parent, name=run_directory.name, version="tensorboard")
    if name == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        check_installed("--logger mlflow", "mlflow", "mlflow")
        # Where MLflow's own variable says, or else beside the runs, whose directories are made later.
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_directory.parent.absolute()}/mlflow.db"
        return MLFlowLogger(experiment_name="lit_mnist", run_name=run_directory.name, tracking_uri=uri)
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        check_installed("--logger wandb", "wandb", "wandb")
        import wandb

        if wandb.setup().settings.mode in ("online", "run", "shared") and not wandb.api.api_key:
            raise InputError("--logger wandb: nobody is logged in; run `wandb login`, or set WANDB_MODE=offline")
        return WandbLogger(name=run_directory.name, project="lit_mnist", save_dir=run_directory)
    return False

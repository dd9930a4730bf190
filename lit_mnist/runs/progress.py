"""What a training shows while it runs, and keeps of each epoch."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lit_mnist.runs.directory import reopen_run_directory, write_metrics

COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
BATCHES_BETWEEN_UPDATES = 20  # reading the running averages waits for the device: not at every step


class PipeConsole(Console):
    """A console whose reader may go away, as `head` does: the training continues without a word."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def make_console() -> Console:
    """Return the console that a progress bar draws on, if there is a terminal to draw on."""
    console = get_console()
    return console if console.is_terminal and not console.is_dumb_terminal else PipeConsole()


class EpochResults(Checkpoint):
    """Collect a row of results an epoch, print it, and bring `metrics.csv` up to date.

    It is a `Checkpoint` because Lightning calls those last, after the module has logged the results of the epoch.

    The rows and the seconds of training travel with the checkpoints; what was trained after the last one before a run
    was killed does not count.

    Args:
        console: where to print.
        run_directory: where `metrics.csv` is; None writes nothing.
        config: the flags of the command, for `config.yaml`.
    """

    def __init__(self, console: Console, run_directory: Path | None, config: Mapping[str, Any]) -> None:
        self.console = console
        self.run_directory = run_directory
        self.config = config
        self.rows: list[dict[str, float]] = []
        self.earlier_seconds = 0.0
        self.run_began = time.monotonic()  # and again with the first batch, once all processes are there

    def seconds(self) -> float:
        """Return the seconds since the first batch, and those before the checkpoint that the run was resumed from."""
        return self.earlier_seconds + time.monotonic() - self.run_began

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [{**row, "train_loss": float(row["train_loss"])} for row in state_dict["rows"]]
        self.earlier_seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The epoch, too: Lightning passes over the start of one that it resumes.
        self.run_began = self.epoch_began = time.monotonic()
        # Not before: what cannot be restored changes nothing.
        if trainer.is_global_zero and self.run_directory is not None:
            reopen_run_directory(self.run_directory, self.config)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_began = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        row = {"epoch": trainer.current_epoch + 1} | {name: metrics[name].item() for name in COLUMNS if name in metrics}
        self.rows.append(row)
        if trainer.is_global_zero:
            if self.run_directory is not None:
                write_metrics(self.run_directory, self.rows)
            line = self._line(row, trainer.max_epochs, time.monotonic() - self.epoch_began)
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    @staticmethod
    def _line(row: dict[str, float], epochs: int | None, seconds: float) -> str:
        parts = [f"Epoch {row['epoch']:>2}/{epochs}", f"{seconds:5.1f} s"]
        parts.append(f"loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}")
        if "val_loss" in row:
            parts.append(f"(validation {row['val_loss']:.4f}, {row['val_accuracy']:.4f})")
        return "  ".join(parts)


class TestOutputs(L.Callback):
    """Keep what `test_step` returns, one batch after the other.

    Attributes:
        batches: of this device, of the last test.
    """

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches.clear()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append(outputs)


class EpochColumn(ProgressColumn):
    """The number of the epoch, from 1, as Keras counts."""

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__()
        self.trainer = trainer

    def render(self, task: Task) -> Text:
        return Text(f"Epoch {self.trainer.current_epoch + 1:>2}/{self.trainer.max_epochs}")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with the running loss and accuracy of the epoch, read only now and then.

    It leaves nothing behind: the lines of `EpochResults` stay.

    Args:
        averages: returns the running averages by name.
    """

    def __init__(self, averages: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self.averages = averages

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [EpochColumn(trainer), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % BATCHES_BETWEEN_UPDATES == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, visible=False)
        self.disable()  # testing takes a second

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return dict(self.averages())


def layer_table(module: L.LightningModule, input_shape: tuple[int, ...]) -> Table:
    """List the layers of a module: name, output shape without the batch, number of parameters."""
    module.example_input_array = torch.zeros(1, *input_shape)
    summary = ModelSummary(module, max_depth=-1)
    module.example_input_array = None
    names = summary.layer_names
    table = Table("layer", "output shape (C, H, W)", title_justify="left")
    table.add_column("parameters", justify="right")
    for name, shape, count in zip(names, summary.out_sizes, summary.param_nums, strict=True):
        if not any(other.startswith(f"{name}.") for other in names):
            table.add_row(name.rpartition(".")[2], " x ".join(map(str, shape[1:])), f"{count:,}")
    table.add_section()
    table.add_row("total", "", f"{summary.total_parameters:,}")
    return table


def busy_machine(accelerator: str) -> str:
    """Say how to train if other programs make it likely that threads on the CPU wait for one another; else nothing.

    The threads of a step wait for the last of them by spinning, and take from that one the core it needs.
    """
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    if accelerator != "cpu" or threads == 1 or "OMP_NUM_THREADS" in os.environ or load < cores / 4:
        return ""
    return (
        f"Other programs keep this machine busy (load {load:.1f} on {cores} cores). Threads then wait for one another: "
        "with OMP_NUM_THREADS=1 in front of the command, training can be several times faster."
    )


def silence_lightning() -> None:
    """Turn off what Lightning says that the user of the command can do nothing about, adverts included."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # --accelerator cpu says so on purpose.
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    # Without --validation_images there are no validation batches, on purpose.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
    # The batches are taken from memory; a worker process would only copy them once more.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Results are logged once an epoch, whatever the interval for those of a step.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # --precision 16-mixed on a CPU: train refuses it with a line of its own.
    warnings.filterwarnings("ignore", message=".*not supported on CPU.*")
    # lightning 2.6.6 calls a function of torch that torch 2.14 deprecates.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)

"""Checkpoints: when they are written and how, and what is looked at before one is used."""

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_mnist.errors import InputError
from lit_mnist.runs.files import write_file
from lit_mnist.runs.signals import SignalHandler, StoppedError

LARGEST_FILE = 2**30  # bytes
STEPS_BETWEEN_SIGNALS = 10  # of several devices: to ask one another, they wait for all that was begun on them


class UnusableCheckpointError(InputError):
    """A file that is not a whole checkpoint of such a training."""


class Checkpoints(Checkpoint):
    """Write a checkpoint after every epoch, after every n steps, and before the training stops for a signal.

    Args:
        directory: where to; None writes nothing.
        every_n_steps: 0 or None for none within an epoch.
        signals: what receives signals; the training defers them.
        settings: of the training, which a checkpoint carries along: a resumed one has to have the same.
        resume: returns how to resume, to be said when a signal has come.

    Attributes:
        training_began: whether it has, from a checkpoint if there was one.
    """

    def __init__(
        self,
        directory: Path | None,
        every_n_steps: int | None,
        signals: SignalHandler,
        settings: Mapping[str, Any],
        resume: Callable[[], str],
    ) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.signals = signals
        self.settings = dict(settings)
        self.resume = resume
        self.training_began = False
        self.earlier_threads: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_threads = int(state_dict["threads"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training_began = True
        now, earlier = torch.get_num_threads(), self.earlier_threads
        if trainer.is_global_zero and earlier not in (None, now) and trainer.strategy.root_device.type == "cpu":
            how = f"with another number of threads ({now}, before {earlier}): sums will be rounded in another order"
            print(f"The training resumes {how} (OMP_NUM_THREADS={earlier} keeps it)", file=sys.stderr)
        self.signals.defer()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # the end of the epoch follows at once, and its checkpoint is the one of this step
        signum = self._signal(trainer)
        if signum or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer)
        if signum:
            self._stop(trainer, signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if signum := self._signal(trainer):
            self._stop(trainer, signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.undefer()

    def _stop(self, trainer: L.Trainer, signum: int) -> None:
        raise StoppedError(signum, self.resume() if trainer.is_global_zero else "")

    def _signal(self, trainer: L.Trainer) -> int:
        received = self.signals.received
        if trainer.world_size == 1:
            return received
        if trainer.global_step % STEPS_BETWEEN_SIGNALS and not trainer.is_last_batch:
            return 0
        # All devices stop at the same step, whichever of them got the signal.
        signum = torch.tensor(received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signum, reduce_op="max"))

    def _save(self, trainer: L.Trainer) -> None:
        if self.directory is not None:
            trainer.save_checkpoint(self.directory / f"step={trainer.global_step:05d}.ckpt", weights_only=False)


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place and rename it; Lightning writes it in place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_file(Path(path), content.getvalue())


class SettledBuckets(L.Callback):
    """Let a resumed training on several devices add up gradients in the same order as one that never stopped.

    After its first step, DDP puts the gradients into its buckets in another order; with more than two devices the place
    in the bucket decides in which order they are added up. A resumed run has that step behind it.

    Args:
        input_shape: of what the module takes, without the batch.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape = input_shape

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 2 and trainer.global_step > 0:
            assert trainer.model is not None
            assert isinstance(pl_module.dtype, torch.dtype)
            inputs = torch.zeros(1, *self.input_shape, dtype=pl_module.dtype, device=pl_module.device)
            trainer.model(inputs).sum().backward()
            pl_module.zero_grad()


def choose_checkpoint(
    resume: str, directory: Path, read: Callable[[Path], int], passed_over_is_said: bool
) -> tuple[Path, int] | None:
    """Return the checkpoint to resume from and its step; None if the run was killed before it had written any.

    Args:
        resume: a path, or "last" for the checkpoint with the most steps that is usable.
        directory: where to look for the last.
        read: returns the step of one, or raises UnusableCheckpointError.
        passed_over_is_said: whether to print a line on each that is passed over.

    Raises:
        InputError: if there are checkpoints, but none is usable, or not with these settings.
    """
    if resume != "last":
        return Path(resume), read(Path(resume))
    by_step = {int(path.stem[5:]): path for path in directory.glob("step=*.ckpt") if path.stem[5:].isdecimal()}
    for _, path in sorted(by_step.items(), reverse=True):
        try:
            return path, read(path)
        except UnusableCheckpointError as error:
            if passed_over_is_said:
                print(f"Passed over {error}", file=sys.stderr)
    if any(not path.name.startswith(".") for path in directory.iterdir()):  # other than what a killed save leaves
        raise InputError(f"--resume last: no checkpoint in {directory} is usable; start a new run")
    return None


def read_checkpoint(
    path: Path, settings: Mapping[str, Any], max_epochs: int, unnamed: Mapping[str, Any] | None = None
) -> int:
    """Return the step of a checkpoint of a training with these settings, after a look at what can be compared.

    Nothing in it is run: it is loaded as weights only.

    Args:
        path: of the file.
        settings: of the training, by what decides each.
        max_epochs: of the resumed training.
        unnamed: what settings were before checkpoints named them.

    Raises:
        UnusableCheckpointError: if it is torn, too large, of other versions, or not of such a training.
        InputError: if it is of one with other settings.
    """
    checkpoint = load_checkpoint(path)
    try:
        theirs = {**(unnamed or {}), **checkpoint["callbacks"]["Checkpoints"]["settings"]}
        checkpoint["callbacks"]["EpochResults"]  # without them, the epochs so far would be lost
        if theirs.keys() != settings.keys():
            raise ValueError("its settings have other names")
        if (version := checkpoint["pytorch-lightning_version"]) != L.__version__:
            raise ValueError(f"written by lightning {version}, this is {L.__version__}")
        step = int(checkpoint["global_step"])
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])
        differences = [
            f"{name} {_first_line(theirs[name])}, now {value}"
            for name, value in settings.items()
            if type(theirs[name]) is not type(value) or theirs[name] != value
        ]
    except Exception as error:  # a forged file may hold anything where a number or a list is expected; it is refused
        raise UnusableCheckpointError(f"{path}: not a checkpoint of such a training ({_first_line(error)})") from error
    if differences:
        raise InputError(f"{path}: trained with {'; '.join(differences)}; give the same, or start a new run")
    if epochs > max_epochs:
        raise InputError(f"--max_epochs {max_epochs}: {path} is of epoch {epochs}; give at least that")
    return step


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, after a look at its check sums; as weights only, so that nothing in it is run.

    Raises:
        UnusableCheckpointError: if it is torn, too large, or no checkpoint.
    """
    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"it holds a {type(checkpoint).__name__}")
    except Exception as error:  # a fault in the file shows as one of a dozen exceptions; it is refused
        raise UnusableCheckpointError(f"{path}: not a whole checkpoint ({_first_line(error)})") from error
    return checkpoint


def read_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the training that wrote a checkpoint, by what decides each; none of Lightning's own."""
    try:
        settings = checkpoint["callbacks"]["Checkpoints"]["settings"]
        return {str(name): value for name, value in settings.items()}
    except (KeyError, TypeError, AttributeError):  # written by another Trainer than that of the command
        return {}


def _check_sums(path: Path) -> None:
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.stat().st_size:,} bytes")
    with zipfile.ZipFile(path) as archive:
        if (unpacked := sum(member.file_size for member in archive.infolist())) > LARGEST_FILE:
            raise ValueError(f"{unpacked:,} bytes when unpacked")
        if (name := archive.testzip()) is not None:
            raise ValueError(f"the check sum of {name[:80]!r} differs")


def _first_line(value: Any) -> str:
    return str(value).partition("\n")[0][:200]

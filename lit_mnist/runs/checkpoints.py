"""Checkpoints: when they are written and how, and what is looked at before one is used."""

import copy
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lit_mnist.module import LitMNIST
from lit_mnist.runs.command import InputError
from lit_mnist.runs.directory import write_file
from lit_mnist.runs.progress import COLUMNS
from lit_mnist.runs.signals import Interruption, StoppedError

LARGEST_FILE = 2**26  # bytes; ours take 2 to 4 million
MEMBER = re.compile(r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/\S+)")
STEPS_BETWEEN_SIGNALS = 10  # of several devices: to ask one another, they wait for all that was begun on them
LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
# What must be the same for a resumed run to end as one that was never interrupted, and where it is chosen.
SETTINGS = {
    "batch_size": "--batch_size",
    "learning_rate": "--learning_rate",
    "seed": "--seed",
    "validation_images": "--validation_images",
    "precision": "--precision",
    "limit_train_batches": "--limit_train_batches",
    "deterministic": "--deterministic",
    "accelerator": "--accelerator",
    "devices": "--devices",
    "dataset_sha256": "the data set in --data_dir, sha256",
}


class UnusableCheckpointError(InputError):
    """A file that is not a whole checkpoint of this training."""


class Checkpoints(Checkpoint):
    """Write a checkpoint after every epoch, after every n steps, and before the training stops for a signal.

    Args:
        directory: where to; None writes nothing.
        every_n_steps: 0 or None for none within an epoch.
        interruption: what tells of signals.

    Attributes:
        settings: of the training, the keys of `SETTINGS`, to be set before it starts; a checkpoint carries them along.
    """

    def __init__(self, directory: Path | None, every_n_steps: int | None, interruption: Interruption) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.settings: dict[str, Any] = {}
        self.earlier_threads: int | None = None
        self.interruption = interruption

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_threads = state_dict["threads"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now, earlier = torch.get_num_threads(), self.earlier_threads
        if trainer.is_global_zero and earlier not in (None, now) and self.settings["accelerator"] == "cpu":
            how = f"goes on with {now} threads, not with {earlier} as before: sums will be rounded in another order"
            print(f"The training {how} (OMP_NUM_THREADS={earlier} keeps it)", file=sys.stderr)
        self.interruption.deferred = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # the end of the epoch follows at once, and its checkpoint is the one of this step
        signum = self._signal(trainer)
        if signum or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer)
        if signum:
            raise StoppedError(signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if signum := self._signal(trainer):
            raise StoppedError(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.interruption.undefer()

    def _signal(self, trainer: L.Trainer) -> int:
        noted = self.interruption.noted
        if trainer.world_size == 1:
            return noted
        if trainer.global_step % STEPS_BETWEEN_SIGNALS and not trainer.is_last_batch:
            return 0
        # All devices stop at the same step, whichever of them was told to.
        return int(trainer.strategy.reduce(torch.tensor(noted, device=trainer.strategy.root_device), reduce_op="max"))

    def _save(self, trainer: L.Trainer) -> None:
        if self.directory is not None:
            trainer.save_checkpoint(self.directory / f"step={trainer.global_step:05d}.ckpt", weights_only=False)


class CheckpointFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place and rename it; Lightning copies it into its place from another directory.

    Attributes:
        path: of the checkpoint to go on from, None for none.
        content: what `read_checkpoint` returned for it. Lightning gets this and does not read the file again, which
            somebody could have changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self.content: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_file(Path(path), content.getvalue())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        assert path == self.path
        return self.content


def choose_checkpoint(
    resume: str, directory: Path, read: Callable[[Path], dict[str, Any]], tell: bool = True
) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint to go on from, path and content; None if the run was killed before it had written any.

    Args:
        resume: a path, or "last" for the checkpoint with the most steps that is usable; others are reported.
        directory: where to look for the last.
        read: returns the content of one, or raises UnusableCheckpointError.
        tell: whether this process says which it has passed over.

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
            if tell:
                print(f"Passed over {error}", file=sys.stderr)
    if any(not path.name.startswith(".") for path in directory.iterdir()):  # other than what a killed save leaves
        raise InputError(f"--resume last: no checkpoint in {directory} is usable; start a new run")
    return None


def read_checkpoint(path: Path, trainer: L.Trainer, module: LitMNIST, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of this very training; nothing in it is run, and all of it is compared before it is used.

    Args:
        path: of the file.
        trainer: as it will go on with the training.
        module: the same.
        settings: of the training, the keys of `SETTINGS`.

    Raises:
        UnusableCheckpointError: if it is torn, too large, or of anything else than this training's model and optimizer.
        InputError: if it is of this training with other settings.
    """
    try:
        members = _members(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a fault in the file shows as one of a dozen exceptions; it is refused
        raise UnusableCheckpointError(f"{path}: not a whole checkpoint ({_first_line(error)})") from error
    try:
        theirs = checkpoint["callbacks"]["Checkpoints"]["settings"]
        if not isinstance(theirs, dict) or theirs.keys() != settings.keys():
            raise ValueError("its settings have other names")
        differences = [
            f"{SETTINGS[name]} {_short(theirs[name])}, now {value}"
            for name, value in settings.items()
            if type(theirs[name]) is not type(value) or theirs[name] != value
        ]
        if not differences:
            expected = _form(trainer, module, settings, checkpoint)
            _compare(checkpoint, expected, "checkpoint")
            if sorted(x.nbytes for x in _leaves(checkpoint) if isinstance(x, Tensor)) != members:
                raise ValueError("its tensors are not those that the file holds")
            _compare_values(checkpoint, expected)
    except Exception as error:  # a forged file may hold anything where a number or a list is expected; it is refused
        raise UnusableCheckpointError(f"{path}: not a checkpoint of this training ({_first_line(error)})") from error
    if differences:
        raise InputError(f"{path}: trained with {'; '.join(differences)}; give the same, or start a new run")
    begun = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    if trainer.max_epochs is not None and begun > trainer.max_epochs:
        raise InputError(f"--max_epochs {trainer.max_epochs}: {path} is of epoch {begun}; give at least that")
    return checkpoint


def _members(path: Path) -> list[int]:
    """Return the sizes of the tensors in a file of torch.save, sorted, after making sure that it is nothing else."""
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.stat().st_size:,} bytes")
    sizes = []
    with zipfile.ZipFile(path) as archive:
        if len({info.filename.partition("/")[0] for info in archive.infolist()}) != 1:
            raise ValueError("more than one directory in the archive")
        for info in archive.infolist():
            if not MEMBER.fullmatch(info.filename) or info.filename.startswith(".") or info.compress_type:
                raise ValueError(f"unexpected member {info.filename[:80]!r}")
            if info.filename.endswith("/byteorder") and archive.read(info).decode() != sys.byteorder:
                raise ValueError("from a machine with another order of bytes")
            if "/data/" in info.filename:
                sizes.append(info.file_size)
        if archive.testzip():
            raise ValueError("check sum differs")
    return sorted(sizes)


def _form(
    trainer: L.Trainer, module: LitMNIST, settings: Mapping[str, Any], checkpoint: dict[str, Any]
) -> dict[str, Any]:
    """Return a checkpoint with the keys, types, shapes and lengths that one of this training has."""
    module = trainer.precision_plugin.convert_module(copy.deepcopy(module))  # type: ignore[assignment]
    optimizer = module.configure_optimizers()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS}
    loops["fit_loop"]["state_dict"] = {"combined_loader": [{"batches": 0}]}
    columns = COLUMNS if settings["validation_images"] else COLUMNS[:2]
    row = {"epoch": 0} | dict.fromkeys(columns, 0.0)
    plugin = trainer.precision_plugin.state_dict()
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "state_dict": module.state_dict(),
        "loops": loops,
        "callbacks": {
            "EpochResults": {"rows": [row] * len(checkpoint["callbacks"]["EpochResults"]["rows"]), "seconds": 0.0},
            "Checkpoints": {"settings": dict(settings), "threads": 0},
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": dict(module.hparams),
        "train_averages": torch.zeros(settings["devices"], 3, dtype=torch.float64),
    } | ({type(trainer.precision_plugin).__qualname__: plugin} if plugin else {})


def _compare(found: Any, expected: Any, where: str) -> None:
    if type(found) is not type(expected):
        raise ValueError(f"{where} is {type(found).__name__}, expected {type(expected).__name__}")
    if isinstance(expected, Tensor):
        # A tensor with a stride of 0 can declare any shape; one in a larger storage shows a part of it.
        layout = (found.dtype, found.shape, found.stride(), found.untyped_storage().nbytes())
        if layout != (expected.dtype, expected.shape, expected.stride(), expected.nbytes):
            raise ValueError(f"{where} is {found.dtype} {list(found.shape)}, expected another form")
    elif isinstance(expected, dict):
        if list(found) != list(expected):
            raise ValueError(f"the keys of {where} differ")
        for key, value in expected.items():
            _compare(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            raise ValueError(f"{where} has another length")
        for index, value in enumerate(expected):
            _compare(found[index], value, f"{where}/{index}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _compare_values(checkpoint: dict[str, Any], expected: dict[str, Any]) -> None:
    """Make sure that what decides how the training goes on is what it must be, and that the counters agree."""
    if (version := checkpoint["pytorch-lightning_version"]) != L.__version__:
        raise ValueError(f"written by lightning {_short(version)}, this is {L.__version__}")
    groups, expected_groups = (x["optimizer_states"][0]["param_groups"] for x in (checkpoint, expected))
    if [group | {"t": 0} for group in groups] != [group | {"t": 0} for group in expected_groups]:
        raise ValueError("another optimizer")
    step, rows = checkpoint["global_step"], checkpoint["callbacks"]["EpochResults"]["rows"]
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["state_dict"]["combined_loader"][0]["batches"]
    begun = loop["epoch_progress"]["current"]["ready"]
    within = begun - len(rows)  # 1 within an epoch, 0 at its end
    counters = {
        "epoch_progress": (begun, begun - 1, begun, len(rows)),
        "epoch_loop.batch_progress": (batches, batches - within, batches, batches),
    }
    if (
        within not in (0, 1)
        or any(tuple(loop[name]["current"].values()) != numbers for name, numbers in counters.items())
        or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1))
        or loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] != step
        or not 0 < batches <= step
        or not all(0 <= group["t"] <= step for group in groups)
        or not all(0 <= number <= 10**9 for number in _leaves(checkpoint["loops"]))
    ):
        raise ValueError("its counters contradict each other")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _short(value: Any) -> str:
    return _first_line(ValueError(value))

"""What a training leaves behind, under the same names from `lit_mnist.train` and `keras_ref.train`.

Only NumPy and matplotlib: neither framework is imported here, and nothing here belongs to what the two sides compare.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from lit_mnist.errors import InputError
from lit_mnist.runs.files import write_file

TAKEN = "exists already; choose another --run_name or --output_dir (lit_mnist.train resumes with --resume last)"


def plan_run_directory(output_dir: str | Path, run_name: str | None, prefix: str) -> Path:
    """Return the path `<output_dir>/<run_name>`, without making anything.

    Args:
        output_dir: directory of all runs.
        run_name: a plain name; None makes one of `prefix` and the time.
        prefix: of the name that is made.

    Raises:
        InputError: if the name is not a plain one, or is taken, or the directory cannot be made.
    """
    name = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}" if run_name is None else run_name
    run_directory = _run_path(output_dir, name)
    try:
        # The others may find it made already.
        if may_be_first_process() and run_directory.exists():
            raise InputError(f"{run_directory}: {TAKEN}")
        there = next(path for path in run_directory.parents if path.exists())
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: {error}; give a directory that can be written") from error
    if not there.is_dir():  # found out now, not after a framework was imported
        raise InputError(f"--output_dir {output_dir}: {there} is not a directory; give one that can be written")
    return run_directory


def may_be_first_process() -> bool:
    """Say whether this may be the first process of several, which alone writes; Lightning's Trainer knows for sure."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def find_run_directory(output_dir: str | Path, run_name: str | None, resume: str) -> Path:
    """Return the run directory of the run that is to be resumed.

    Args:
        output_dir: directory of all runs.
        run_name: name of the run; None takes that of the checkpoint.
        resume: "last", or the path of a checkpoint.

    Raises:
        InputError: if there is none.
    """
    checkpoint = Path(resume)
    try:
        if resume != "last" and not checkpoint.is_file():
            raise InputError(f"--resume {resume}: no such file; give a checkpoint, or last for the newest of the run")
    except OSError as error:
        raise InputError(f"--resume {resume}: {error.strerror}; give a checkpoint, or last") from error
    if run_name is not None:
        run_directory = _run_path(output_dir, run_name)
    elif resume != "last" and checkpoint.absolute().parent.name == "checkpoints":
        run_directory = checkpoint.absolute().parent.parent
    else:
        raise InputError(f"--resume {resume}: of which run? Give its --output_dir and --run_name")
    if not (run_directory / "checkpoints").is_dir():
        raise InputError(f"--resume {resume}: {run_directory} is no run directory; check --output_dir and --run_name")
    return run_directory


@contextlib.contextmanager
def hold_run_directory(run_directory: Path) -> Iterator[None]:
    """Keep other processes from training in a run directory; the lock of a killed process locks nothing.

    Raises:
        InputError: if another process holds it.
    """
    lock = FileLock(run_directory / ".lock")
    try:
        lock.acquire(timeout=1)
    except Timeout as error:
        raise InputError(f"{run_directory}: another process is training in it; wait for its end, or end it") from error
    try:
        for part in [*run_directory.glob(".*.part"), *run_directory.glob("checkpoints/.*.part")]:
            part.unlink()  # what a killed process left
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove what is open
            Path(lock.lock_file).unlink()
        lock.release()


def reopen_run_directory(run_directory: Path, config: Mapping[str, Any]) -> None:
    """Make a run directory, locked, ready for a training: what will be written anew is removed.

    Args:
        run_directory: that exists.
        config: the flags of the command.
    """
    (run_directory / "summary.json").unlink(missing_ok=True)  # of fewer epochs
    write_file(run_directory / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())


def find_checkpoint(ckpt_path: str | Path | None, output_dir: str | Path = "runs") -> Path:
    """Return the file that `--ckpt_path` means: itself, or the newest checkpoint of a run.

    Args:
        ckpt_path: a file; or a run directory, or its `checkpoints`; None takes the newest run below `output_dir`.
        output_dir: directory of all runs.

    Raises:
        InputError: if there is none.
    """
    if ckpt_path is None:
        newest = [path for run in _listed(Path(output_dir)) if (path := _newest_checkpoint(run))]
        if not newest:
            raise InputError(
                f"no trained model below {output_dir}/; train one (python -m lit_mnist.train), or name one "
                "(--ckpt_path: a checkpoint, a run directory or a file of Keras)"
            )
        return max(newest, key=lambda path: path.stat().st_mtime)
    path = Path(ckpt_path)
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file; give a checkpoint, a run directory or a file of Keras")
    except OSError as error:  # a name that is too long
        raise InputError(f"{path}: {error.strerror}; give a checkpoint, a run directory or a file of Keras") from error
    if path.is_file():
        return path
    if not path.is_dir():  # /dev/zero, say, which would be read for ever
        raise InputError(f"{path}: a device or the like; give a checkpoint, a run directory or a file of Keras")
    if checkpoint := _newest_checkpoint(path):
        return checkpoint
    raise InputError(f"{path}: a directory without checkpoints; give a run directory, a checkpoint or a file of Keras")


def _newest_checkpoint(run_directory: Path) -> Path | None:
    """Return the checkpoint of the most steps, or epochs of Keras."""
    directory = run_directory if run_directory.name == "checkpoints" else run_directory / "checkpoints"
    named = [
        (int(path.stem.partition("=")[2]), path)
        for path in _listed(directory)
        if re.fullmatch(r"step=\d{1,9}\.ckpt|epoch=\d{1,9}\.keras", path.name)
    ]
    return max(named)[1] if named else None


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # there is none
        return []


def epochs_of_results(run_directory: Path) -> int:
    """Return after how many epochs a run has left its results, 0 if it has not."""
    try:
        epochs = json.loads((run_directory / "summary.json").read_text())["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return epochs if isinstance(epochs, int) else 0


def create_run_directory(run_directory: Path, config: Mapping[str, Any]) -> None:
    """Make a run directory with `config.yaml` and an empty `checkpoints` in it.

    Args:
        run_directory: as `plan_run_directory` returned it.
        config: the flags of the command; `--config <run directory>/config.yaml` trains so again.

    Raises:
        InputError: if somebody else has made it meanwhile, or it cannot be written.
    """
    output_dir = run_directory.parent
    beside = output_dir / f".{run_directory.name}.{os.getpid()}.part"
    try:
        if not output_dir.is_dir():
            output_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "checkpoints").mkdir(parents=True)
        write_file(beside / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
        beside.rename(run_directory)  # of two runs that start at once, the first wins
        for left in output_dir.glob(f".{run_directory.name}.*.part"):  # by those that lost, or were killed
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if run_directory.exists():
            raise InputError(f"{run_directory}: {TAKEN}") from error
        raise InputError(f"--output_dir {output_dir}: {error}; give a directory that can be written") from error


def write_metrics(run_directory: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.csv`: one row an epoch, with the keys of the first row as columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_file(run_directory / "metrics.csv", text.getvalue().encode())


def write_results(
    run_directory: Path,
    history: Sequence[Mapping[str, float]],
    summary: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Write `metrics.csv`, `summary.json` and the three pictures.

    Args:
        run_directory: where to.
        history: one row an epoch: epoch (from 1), train_loss, train_accuracy, and val_* where there is any.
        summary: what `summary.json` is to hold, null for what is not finite; the test results are drawn, too.
        images: test images, bytes, [N, 28, 28].
        labels: their classes, [N].
        probabilities: what the trained model gives for them, [N, 10].
    """
    from lit_mnist.runs import figures

    write_metrics(run_directory, history)
    predicted = probabilities.argmax(axis=1)
    pictures = {
        "curves.png": figures.learning_curves(history, summary["test_loss"], summary["test_accuracy"]),
        "confusion_matrix.png": figures.confusion_matrix(labels, predicted),
        "misclassified.png": figures.misclassified(images, labels, probabilities),
    }
    for name, figure in pictures.items():
        figures.write_figure(run_directory / name, figure)
    # Last, so that a summary says that all the rest is there.
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()
    }
    write_file(run_directory / "summary.json", (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode())


def result_lines(run_directory: Path, summary: Mapping[str, Any]) -> str:
    """Say how the run ended and where its results are."""
    return (
        f"Test loss {summary['test_loss']:.4f}, accuracy {summary['test_accuracy']:.4f} "
        f"on {summary['test_images']:,} images, after {summary['train_seconds']:.1f} s of training.\n"
        f"Results: {run_directory}"
    )


def _run_path(output_dir: str | Path, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name):
        raise InputError(f"--run_name {name!r}: expected up to 100 letters, digits and _ . + = -, no path")
    if "::" in str(output_dir):
        raise InputError(f"--output_dir {output_dir}: expected a path without '::', which Lightning gives a meaning")
    return Path(output_dir) / name

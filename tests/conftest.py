"""What several test files need: the data set, and the commands run as a user runs them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from keras_ref.parity.ladder import Arrays
from keras_ref.parity.workers import Workers

from lit_mnist.mnist_files import prepare_files

# One thread, here and in every process that a test starts: sums differ with the number.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background; the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., subprocess.CompletedProcess[str]]
Flags = dict[str, Any]


def make_trainer(*callbacks: L.Callback, **flags: Any) -> L.Trainer:
    """A Trainer on the CPU that writes and shows nothing."""
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **flags,
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST, unpacked once for the whole session. Tests only read it."""
    path = tmp_path_factory.mktemp("data")
    prepare_files(path, verify=True)
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `python ARGUMENTS` and return the finished process, its output as text."""

    def run(
        *arguments: object, cwd: Path | None = None, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Workers]:
    """Both sides, a process each for the whole session, and what they recorded."""
    with Workers("lit_mnist:LitMNIST", tmp_path_factory.mktemp("workers"), str(data_dir)) as workers:
        yield workers


@pytest.fixture(scope="session")
def keras_facts(workers: Workers) -> Arrays:
    """What Keras says of its model and of its data."""
    _, theirs = workers.facts()
    return theirs


def command_line(flags: Flags) -> list[str]:
    return ["-m", "lit_mnist.train", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.ckpt"))


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step="))


def last_step(run: Path) -> int:
    return max(map(step_of, checkpoints(run)), default=0)


class Process:
    """A training as a process of its own, to be sent signals, started by Python or by what `starter` names."""

    def __init__(self, flags: Flags, *starter: str, **environment: str) -> None:
        self.run = Path(flags["output_dir"]) / flags["run_name"]
        self.process = subprocess.Popen(
            [*(starter or [sys.executable]), *command_line(flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def wait_for_step(self, step: int) -> None:
        while last_step(self.run) < step and self.process.poll() is None:
            time.sleep(0.005)
        assert self.process.poll() is None, self.process.communicate()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def finish(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stderr


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def results(run: Path) -> dict[str, float]:
    """Every number that a run reports, but for the seconds."""
    summary = json.loads((run / "summary.json").read_text())
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    del numbers["train_seconds"]
    return numbers | {f"{name} {row['epoch']}": float(value) for row in rows for name, value in row.items()}

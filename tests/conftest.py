"""What several test files need: the data set, and the commands run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from keras_ref.ladder import Arrays
from keras_ref.workers import Workers
from lit_mnist.mnist_files import prepare_files

Command = Callable[..., subprocess.CompletedProcess[str]]


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

"""What several test files need: the data set, and both sides of the comparison.

Neither torch nor Lightning is imported here: the process that only hands the tests out would wait for them, too.
"""

import csv
import gzip
import json
import os
import signal
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Finished
from xdist.scheduler import LoadScopeScheduling

from keras_ref.data import SHA256, load_data
from keras_ref.parity.sides import Sides
from lit_mnist.trace.files import Arrays

# One thread, here (torch is imported later) and in every process that a test starts: sums differ with the number.
os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background; the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., Finished]
OF_BOTH_SIDES = ("test_backends", "test_parity", "test_facts", "test_report", "test_third_party")
# What takes longest begins first: begun last, one process would work through it while the other had nothing to do.
LONGEST = ("sides", "test_models", "test_train", "test_keras_files", "test_resume", "test_devices", "test_golden")


def scope(nodeid: str) -> str:
    """Return what is given to one process: a file, or those files that share both sides."""
    file = Path(nodeid.partition("::")[0]).stem
    return "sides" if file in OF_BOTH_SIDES else file


class ByFile(LoadScopeScheduling):
    """Give all tests of a file to one process; those of both sides to the same one, so that they start once.

    Not xdist's groups: they do nothing under pytest 9.2 (pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # by the number of tests
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(scope(item.nodeid), len(ranks)))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST, unpacked once for the whole session. Tests only read it."""
    path = tmp_path_factory.mktemp("data")
    raw = path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        (raw / name).write_bytes(gzip.decompress((files("lit_mnist") / "mnist" / f"{name}.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `python ARGUMENTS` and return the finished process, its output as text."""
    return commands.run


@pytest.fixture(scope="session")
def sides(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Sides]:
    """Both sides, each in processes of its own for the whole session, and what they answered."""
    with Sides("lit_mnist:LitMNIST", tmp_path_factory.mktemp("sides"), str(data_dir), steps=60, processes=1) as sides:
        yield sides


@pytest.fixture(scope="session")
def keras_facts(sides: Sides) -> Arrays:
    """What Keras says of its model and of its data."""
    _, theirs = sides.facts()
    return theirs


def write_small_data_set(data_dir: Path, training_images: int) -> None:
    """Write the first images of MNIST as a data set of its own, unpacked, with 200 test images."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    mnist = load_data()
    training, test = slice(training_images), slice(200)
    arrays = (
        mnist.train_images[training],
        mnist.train_labels[training],
        mnist.test_images[test],
        mnist.test_labels[test],
    )
    for name, array in zip(SHA256, arrays, strict=True):
        lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
        (raw / name).write_bytes(bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes())


def results(run: Path) -> dict[str, float]:
    """Every number that a run reports, but for the seconds."""
    summary = json.loads((run / "summary.json").read_text())
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    del numbers["train_seconds"]
    return numbers | {f"{name} {row['epoch']}": float(value) for row in rows for name, value in row.items()}

"""Measure a command from outside: when it says what, how much memory it takes, how long all of it lasts."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_ref.data import MNIST, SHA256
from lit_mnist.errors import InputError

BEGINS = "Training begins"
# What ends an epoch: a line of lit_mnist.train, of a script of ours, of Keras' fit with verbose=2.
EPOCH = re.compile(r"Epoch +\d+/\d+ +(?:([\d.]+) s)?.*loss|\d+/\d+ - ")
RESULT = re.compile(r"Test loss ([\d.]+|nan), accuracy ([\d.]+)")


@dataclass(frozen=True)
class Training:
    """What was measured of one training.

    Attributes:
        seconds: from start to exit.
        begins: seconds from the start to the first step.
        epochs: seconds of each.
        ends: seconds from the last step to the exit.
        memory: peak, in MiB, of the process.
        test_loss: nats per image.
        test_accuracy: in [0, 1].
    """

    seconds: float
    begins: float
    epochs: tuple[float, ...]
    ends: float
    memory: float
    test_loss: float
    test_accuracy: float

    @property
    def warm(self) -> float:
        """Seconds of an epoch, without the first."""
        return sum(self.epochs[1:]) / len(self.epochs[1:])

    @property
    def no_training(self) -> float:
        """Seconds before the first step and after the last."""
        return self.begins + self.ends

    def whole(self, epochs: int) -> float:
        """Seconds of the whole command with so many epochs: measured, or with warm epochs added."""
        return self.seconds + (epochs - len(self.epochs)) * self.warm


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[list[tuple[float, str]], float, float]:
    """Run a command; end it and its children if this process is to end.

    Returns:
        The lines that it printed, each with its second; the seconds that it lasted; its peak memory in MiB.

    Raises:
        InputError: if it fails; it says the last line of what went wrong.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            lines = [(time.monotonic() - start, line.rstrip()) for line in process.stdout]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.returncode is None:
                process.wait()
            process.stdout.close()
        seconds = time.monotonic() - start
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            what = " ".join(command[1:3])
            raise InputError(f"{what} ended with code {process.returncode}: {said[-1][:300]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there
    return lines, seconds, usage.ru_maxrss * unit / 2**20


def training(command: Sequence[str], environment: Mapping[str, str]) -> Training:
    """Run a contestant and measure it.

    Raises:
        InputError: if it fails, or does not say what it should.
    """
    lines, seconds, memory = run(command, environment)
    return read_training(lines, seconds, memory)


def read_training(lines: Sequence[tuple[float, str]], seconds: float, memory: float) -> Training:
    """Find out of the lines of a contestant how long its parts took.

    Args:
        lines: second and text of each.
        seconds: that it lasted.
        memory: its peak, in MiB.

    Raises:
        InputError: if there are no epochs or no test result among them.
    """
    ends = [(at, match) for at, line in lines if (match := EPOCH.match(line.strip()))]
    results = [match for _, line in lines if (match := RESULT.search(line))]
    if not ends or not results:
        last = lines[-1][1] if lines else "it printed nothing"
        raise InputError(f"a contestant said nothing of its epochs or its test; its last line: {last[:200]}")
    said = [at for at, line in lines if line.startswith(BEGINS)]
    begins = said[0] if said else ends[0][0] - float(ends[0][1][1])  # ours says how long its first epoch took
    times = [begins, *(at for at, _ in ends)]
    return Training(
        seconds,
        begins,
        tuple(after - before for before, after in itertools.pairwise(times)),
        seconds - times[-1],
        memory,
        float(results[-1][1]),
        float(results[-1][2]),
    )


def figures(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command whose last line is JSON, and return what it holds."""
    lines, _, _ = run(command, environment)
    return dict(json.loads(lines[-1][1]))


def write_data(mnist: MNIST, images: int, directory: Path) -> None:
    """Write a data set in MNIST's format: the first `images` training images, repeated if there are fewer."""
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in zip(SHA256, mnist[:4], strict=True):
        count = images if name.startswith("train") else len(array)
        lengths = b"".join(length.to_bytes(4, "big") for length in (count, *array.shape[1:]))
        with (raw / name).open("wb") as file:
            file.write(bytes([0, 0, 8, array.ndim]) + lengths)
            for start in range(0, count, len(array)):
                file.write(array[: count - start].tobytes())

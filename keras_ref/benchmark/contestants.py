"""Who takes part: each a command that does the documented training, written as its users would write it."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lit_mnist.errors import InputError

BATCH_SIZE = 100  # of the documented training


@dataclass(frozen=True)
class Contestant:
    """A command.

    Args:
        name: by which `--only` takes it.
        title: in tables.
        module: that `python -m` runs.
        flags: beside those that all take.
        environment: variables that it needs.
        needs: packages without which it cannot take part.
    """

    name: str
    title: str
    module: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def command(
        self, data_dir: Path, epochs: int, batch_size: int, output_dir: Path, accelerator: str = "cpu"
    ) -> list[str]:
        """Return the command line; Keras takes a GPU where it sees one."""
        flags: dict[str, object] = {"data_dir": data_dir, "batch_size": batch_size, "output_dir": output_dir}
        flags |= {"max_epochs" if self.name == OURS else "epochs": epochs}
        flags |= {} if self.module == KERAS else {"accelerator": accelerator}
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", self.module, *words, *self.flags]

    def is_installed(self) -> bool:
        """Say whether all that it needs is there."""
        return all(importlib.util.find_spec(package) for package in self.needs)


OURS = "ours"
KERAS = "keras_ref.benchmark.keras_fit"
CONTESTANTS = (
    Contestant(
        OURS,
        "lit_mnist.train",
        "lit_mnist.train",
        ("--devices", "1", "--run_name", "run", "--verify_data", "false"),
    ),
    Contestant(
        "tensorflow", "Keras on TensorFlow", KERAS, (), {"KERAS_BACKEND": "tensorflow"}, ("keras", "tensorflow")
    ),
    Contestant(
        "xla",
        "Keras on TensorFlow, jit_compile=True",
        KERAS,
        ("--xla",),
        {"KERAS_BACKEND": "tensorflow"},
        ("keras", "tensorflow"),
    ),
    Contestant("jax", "Keras on JAX", KERAS, (), {"KERAS_BACKEND": "jax"}, ("keras", "jax")),
    Contestant("loop", "plain PyTorch loop", "lit_mnist.benchmark.loop"),
    Contestant("lightning", "usual Lightning script", "lit_mnist.benchmark.lightning_script"),
)


def chosen(only: list[str] | None) -> list[Contestant]:
    """Return those that `--only` names, ours among them, or all that are installed.

    Raises:
        InputError: names the one that there is not, or that is not installed.
    """
    names = [one.name for one in CONTESTANTS]
    for name in only or ():
        if name not in names:
            raise InputError(f"--only {name}: no such contestant; expected some of {', '.join(names)}")
    wanted = [one for one in CONTESTANTS if only is None or one.name in (*only, OURS)]
    for one in wanted:
        if only is not None and not one.is_installed():
            missing = ", ".join(package for package in one.needs if not importlib.util.find_spec(package))
            raise InputError(f"--only {one.name}: {missing} is not installed; install it, or leave {one.name} out")
    return [one for one in wanted if one.is_installed()]


def environment(threads: int, own: Mapping[str, str], accelerator: str = "cpu") -> dict[str, str]:
    """Return the variables of a contestant: the user's, but for those that would change what is measured."""
    left_out = ("TF_NUM_INTEROP_THREADS", "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(threads))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    return kept | counts | quiet | ({"CUDA_VISIBLE_DEVICES": ""} if accelerator == "cpu" else {}) | dict(own)

"""Commands as a user runs them, each a process of its own.

Importing Lightning takes four seconds. So a process is forked from a server that has imported everything once, where
the import itself is not what is tested.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

Flags = dict[str, Any]

PRELOADED = [
    "lightning",
    "matplotlib.figure",
    "lit_mnist.data",
    "lit_mnist.module",
    "lit_mnist.evaluate",
    "lit_mnist.export",
    "lit_mnist.predict",
    "lit_mnist.train",
    "lit_mnist.runs.figures",
    "lit_mnist.runs.progress",
    "lit_mnist.runs.trainer",
    "lit_mnist.trace.requests",
    "keras_ref.parity.report",
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)
# What imports TensorFlow, which torch in the same process can crash.
NOT_FORKED = ("keras_ref.train", "keras_ref.trace", "pip")


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Forked:
    """`python -m MODULE FLAGS`, forked from the server; as much of `subprocess.Popen` as the tests need."""

    def __init__(self, arguments: list[str], cwd: Path | None = None, **environment: str) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as out, tempfile.NamedTemporaryFile(delete=False) as err:
            self.files = [Path(out.name), Path(err.name)]
        self.process = FORKS.Process(target=run_module, args=(arguments, cwd, environment, *map(str, self.files)))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def finish(self, timeout: float = 120) -> Finished:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {[path.read_text() for path in self.files]}")
        texts = [path.read_text() for path in self.files]
        for path in self.files:
            path.unlink()
        return Finished(self.process.exitcode, *texts)


def run_module(arguments: list[str], cwd: Path | None, environment: dict[str, str], *files: str) -> None:
    """Do in a forked process what `python -m` does."""
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ |= environment
    tempfile.tempdir = None  # looked up once, by the server
    if cwd is not None:
        os.chdir(cwd)
        sys.path.insert(0, str(cwd))
    module, *flags = arguments
    sys.modules.pop(module, None)  # it was imported once, by the server
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(*arguments: object, cwd: Path | None = None, timeout: float = 600, **environment: str) -> Finished:
    """Run `python ARGUMENTS`."""
    words = [str(argument) for argument in arguments]
    if words[0] == "-m" and words[1] not in NOT_FORKED and "PYTHONPATH" not in environment:
        return Forked(words[1:], cwd, **environment).finish(timeout)
    finished = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def command_line(flags: Flags) -> list[str]:
    return ["-m", "lit_mnist.train", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.ckpt"))


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step="))


def last_step(run: Path) -> int:
    return max(map(step_of, checkpoints(run)), default=0)


class Training:
    """A training as a process of its own, to be sent signals, forked or, with words, started by a program."""

    def __init__(self, flags: Flags, *starter: str, **environment: str) -> None:
        self.run = Path(flags["output_dir"]) / flags["run_name"]
        self.started: subprocess.Popen[str] | None = None
        if starter or "PYTHONPATH" in environment:
            self.started = subprocess.Popen(
                [*(starter or [sys.executable]), *command_line(flags)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            )
        self.process = self.started or Forked(command_line(flags)[1:], **environment)

    def wait_for_step(self, step: int) -> None:
        while last_step(self.run) < step and self.process.poll() is None:
            time.sleep(0.005)
        assert self.process.poll() is None, self.finish()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def outputs(self) -> Finished:
        if isinstance(self.process, Forked):
            return self.process.finish()
        outputs = self.process.communicate(timeout=120)
        return Finished(self.process.returncode, *outputs)

    def finish(self) -> tuple[int, str]:
        code, _, stderr = self.outputs()
        return code, stderr


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

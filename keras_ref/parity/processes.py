"""The processes of the two sides: each waits for requests, one at a time, and answers with arrays in a file."""

import gc
import importlib
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

from lit_mnist.errors import InputError
from lit_mnist.trace.files import Arrays, write_arrays

Side = Literal["ours", "theirs", "jax", "torch"]  # the port, Keras on TensorFlow, and Keras on another backend
OF_KERAS: dict[Side, str] = {"theirs": "tensorflow", "jax": "jax", "torch": "torch"}  # its backends
MODULES: dict[Side, str] = {"ours": "lit_mnist.trace.requests", **dict.fromkeys(OF_KERAS, "keras_ref.trace.requests")}
SILENCE = 600  # seconds without a word from any process after which it is taken for stuck; 50 steps take one or two
STEPS_BETWEEN_MESSAGES = 50
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
# Of processes side by side, each has a core to itself: the threads of both would wait for one another.
ONE_THREAD_EACH = dict.fromkeys(THREAD_COUNTS, "1")


@dataclass(frozen=True)
class Request:
    """What one side is asked for.

    Args:
        side: who.
        name: of the function in its `requests` module.
        arguments: of the function.
        run_id: what the answer has to carry; None where it carries none.
    """

    side: Side
    name: str
    arguments: tuple[tuple[str, str | int], ...]
    run_id: str | None = None


class SideProcess:
    """A process of one side.

    Args:
        side: whose functions it calls.
        log: file for what it prints.
    """

    def __init__(self, side: Side, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.side, self.log = side, log
        self.connection, other_end = context.Pipe()
        log.touch()
        self.process = context.Process(target=answer, args=(side, other_end, str(log)), daemon=True)
        self.process.start()
        other_end.close()
        self.request: Request | None = None
        self.answers: dict[Request, Arrays] = {}

    def send(self, request: Request, output: Path, answers: dict[Request, Arrays]) -> None:
        """Ask for what is then found in the file `output`, and belongs into `answers`."""
        self.request, self.answers = request, answers
        self.connection.send((request.name, dict(request.arguments), str(output)))

    def receive(self) -> tuple[int, int] | None:
        """Wait for the next message: the steps done and their number, or None when the file is there.

        Raises:
            InputError: if it says what went wrong, or has ended.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            line = f"{MODULES[self.side]} ended with code {self.process.exitcode}: {last_line(self.log)}"
            raise InputError(line) from error
        if isinstance(message, str):
            self.request = None  # it waits for the next
            raise InputError(message)
        return message

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def first_to_speak(processes: list[SideProcess]) -> list[SideProcess]:
    """Wait until at least one has a message, and return those.

    Raises:
        InputError: if none has for `SILENCE` seconds.
    """
    ready = wait([process.connection for process in processes], SILENCE)
    if not ready:
        names = " and ".join(MODULES[process.side] for process in processes)
        raise InputError(f"{names}: nothing heard for {SILENCE} s; is the candidate waiting?")
    return [process for process in processes if process.connection in ready]


def answer(side: Side, connection: Connection, log: str) -> None:
    """Call a side's functions as they are asked for, until the other end is closed: the life of its process.

    A function returns named arrays, which are written to the file; `progress`, its first argument, sends the steps
    done and their number.
    """
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= ONE_THREAD_EACH | {"KERAS_BACKEND": OF_KERAS.get(side, "")}

    def progress(step: int, steps: int) -> None:
        if step % STEPS_BETWEEN_MESSAGES == 0:
            connection.send((step, steps))

    functions = importlib.import_module(MODULES[side])
    gc.freeze()  # what was imported stays, and need not be looked through at each collection, 0.2 s of a framework
    while True:
        try:
            name, arguments, output = connection.recv()
        except EOFError:
            return
        try:
            write_arrays(Path(output), getattr(functions, name)(progress, **arguments))
        except InputError as error:
            connection.send(str(error))
        except Exception as error:  # of a candidate, whatever it may be; the traceback goes to the log
            traceback.print_exc()
            sys.stderr.flush()
            connection.send(in_a_line(error))
        else:
            connection.send(None)
        gc.collect()  # a Trainer and its module refer to one another


def last_line(log: Path) -> str:
    """Return the last line that a process printed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("lit_mnist.errors.InputError: ") if lines else "it said nothing"


def in_a_line(error: Exception) -> str:
    """Return what went wrong, in which line of a candidate; and what to do, if a comparison asks for it on purpose."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())} ({_where(error)})"
    if "Expected more than 1 value per channel" in text:  # torch's batch normalisation
        text += "; a comparison has a batch of one example, which lit_mnist.porting.KerasBatchNorm takes as Keras does"
    return text


def _where(error: Exception) -> str:
    """Return file and line of the innermost frame outside of installed libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith("<")]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "in a library"

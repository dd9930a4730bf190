"""What a process of the comparison may do instead of answering."""

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from lit_mnist.trace.files import write_arrays


def another_training(side: str, connection: Connection, log: str) -> None:
    _, _, output = connection.recv()
    write_arrays(Path(output), {"run_id": np.asarray("xyz"), "loss": np.zeros(3)})
    connection.send(None)


def torn(side: str, connection: Connection, log: str) -> None:
    _, _, output = connection.recv()
    Path(output).write_bytes(b"PK")
    connection.send(None)


def killed(side: str, connection: Connection, log: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(side: str, connection: Connection, log: str) -> None:
    Path(log).write_text("RuntimeError: no such layer")
    raise SystemExit(1)


def silent(side: str, connection: Connection, log: str) -> None:
    pass


def stuck(side: str, connection: Connection, log: str) -> None:
    time.sleep(600)


def obliging(side: str, connection: Connection, log: str) -> None:
    """Answer everything but what is called "impossible", and take a second for what is called "long"."""
    while True:
        name, _, output = connection.recv()
        time.sleep(name == "long")
        if name != "impossible":
            write_arrays(Path(output), {"name": np.asarray(name)})
        connection.send("it is impossible" if name == "impossible" else None)

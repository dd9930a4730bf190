"""python -m keras_ref.benchmark: how long the documented training takes, here, with Keras and with others."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from keras_ref.benchmark.contestants import chosen
from lit_mnist.errors import InputError
from lit_mnist.runs.command import PositiveInt, run, with_code_2
from lit_mnist.runs.signals import exit_on_signals


def benchmark(
    rounds: PositiveInt = 5,
    epochs: PositiveInt = 2,
    threads: PositiveInt | None = None,
    images: PositiveInt = 60_000,
    accelerator: Literal["cpu", "gpu"] = "cpu",
    only: list[str] | None = None,
    growth: bool = False,
    data_dir: str = "data",
    output: str = "benchmark",
) -> int:
    """Measure how long the documented training takes: ours, Keras on TensorFlow, with XLA and on JAX, others on torch.

    Each contestant is a command as its users would write it, in a process of its own, with the same number of threads.
    They take turns: each round runs every one once, beginning with another. What counts are the ratios within a round,
    their median and their spread. Leaves benchmark.json, benchmark.md and benchmark.png in --output, if it is stopped
    those of the rounds before. Leave the machine alone meanwhile. Exit code 1 if one of them learned otherwise than the
    rest, 2 if it could not be run.

    Args:
        rounds: How often each contestant is run.
        epochs: Of each training, from 2 up; the first does not count as an epoch, since it warms up. The time of the
            whole command is that of 10 epochs, reckoned from them; with 10 it is measured.
        threads: Of each contestant, which is kept to as many cores; null takes all cores.
        images: Training images in an epoch, from 200 to 60,000.
        accelerator: What they train on; gpu is one CUDA device, of which Keras sees all.
        only: Which contestants, as in [tensorflow,loop], besides ours: of tensorflow, xla, jax, loop, lightning.
            null takes all that are installed.
        growth: Measure how ours grows instead: with the batch (Keras on TensorFlow beside it), with the processes, with
            the images.
        data_dir: Where MNIST is; files that are not there are those that ship with lit_mnist.
        output: Directory to write to.
    """
    flags = dict(locals())  # before any other variable is set: the flags and their values
    contestants = chosen(only)
    if epochs < 2:
        raise InputError(f"--epochs {epochs}: the first epoch warms up; expected 2 or more")
    if not 200 <= images <= 60_000:
        raise InputError(f"--images {images}: expected 200 to 60,000")
    cores = available_cores()
    if threads is not None and threads > len(cores):
        raise InputError(f"--threads {threads}: this machine lends {len(cores)} cores; expected at most that")
    threads = threads or len(cores)
    if growth and accelerator != "cpu":
        raise InputError(f"--accelerator {accelerator}: growth is measured on a CPU; leave out one of them")

    from keras_ref.benchmark import report
    from keras_ref.benchmark.measure import write_data
    from keras_ref.benchmark.rounds import Places, grow, play
    from keras_ref.data import load_data
    from keras_ref.parity.display import make_console

    directory = Path(output)
    report.prepare(directory)
    mnist = load_data(data_dir)
    exit_on_signals()
    if hasattr(os, "sched_setaffinity"):  # on Linux; handed down to all that is started
        os.sched_setaffinity(0, cores[:threads])
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary, report.Turns(console) as turns:
        places = Places(Path(temporary), threads, turns, accelerator)
        made_by = report.made_by(flags | {"threads": threads})
        if growth:
            findings = made_by | grow(places, mnist, epochs)
            write(directory, findings)
        else:
            write_data(mnist, images, places.data)
            for came_out in play(places, contestants, rounds, epochs, images):
                findings = made_by | came_out
                write(directory, findings)
    return show(directory, console, findings)


def write(directory: Path, findings: dict[str, Any]) -> None:
    """Write what was found: figures, tables, pictures."""
    from keras_ref.benchmark import report
    from lit_mnist.runs.figures import write_figure
    from lit_mnist.runs.files import write_file

    name = "growth" if "growth" in findings else "benchmark"
    write_file(directory / f"{name}.json", (json.dumps(findings, indent=1, allow_nan=False) + "\n").encode())
    if name == "growth":
        for kind, figure in report.draw_growth(findings).items():
            write_figure(directory / f"growth_{kind}.png", figure)
        write_file(directory / "growth.md", report.growth_markdown(findings).encode())
    else:
        write_figure(directory / "benchmark.png", report.draw(findings))
        write_file(directory / "benchmark.md", report.markdown(findings).encode())


def show(directory: Path, console: Any, findings: dict[str, Any]) -> int:
    """Show what was found and where it is; return the exit code."""
    from keras_ref.benchmark import report

    if "growth" in findings:
        console.print(report.growth_markdown(findings), highlight=False, markup=False, soft_wrap=True)
    else:
        for table in report.tables(findings):
            console.print(table)
    for line in report.said(findings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    name = "growth" if "growth" in findings else "benchmark"
    console.print(f"Written: {directory}/{name}.json", highlight=False, markup=False, soft_wrap=True)
    return 1 if findings.get("apart") else 0


def available_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


if __name__ == "__main__":
    run(with_code_2(benchmark), prog="python -m keras_ref.benchmark")

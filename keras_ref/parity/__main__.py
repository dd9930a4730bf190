"""python -m keras_ref.parity: prove or refute that a port trains exactly as the documented Keras model does."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from keras_ref.parity.plan import FIRST_OPTIONAL, RUNGS, STEPS_PER_EPOCH, Dtype, Verdict, climb
from keras_ref.parity.workers import Workers
from lit_mnist.errors import InputError
from lit_mnist.runs.command import Seed, run


def parity(
    candidate: str = "lit_mnist:LitMNIST",
    rungs: list[int] | None = None,
    steps: PositiveInt = 600,
    seed: Seed = 0,
    dtype: Dtype = "both",
    seeds: NonNegativeInt = 0,
    devices: bool = False,
    resume: bool = False,
    mutants: bool = False,
    report: str | None = None,
    data_dir: str = "data",
) -> int:
    """Prove or refute that a port trains exactly as the documented Keras model does, rung by rung.

    Both sides train on the same batches from the same weights, each in a process of its own; what they recorded is
    compared. The ladder stops at the first rung that does not hold and says where to look. Exit code 0 if all rungs
    hold, 1 if one does not, 2 if it could not be run.

    Args:
        candidate: The port, a LightningModule, as package.module:Class (lit_mnist/recording.py says what it offers).
        rungs: Numbers of the rungs to climb, as in [1,2,5]; null takes 1 to 10, 11 with --seeds, 12 with --devices, 13
            with --resume.
        steps: Length of the trajectory; the documented training has 6000.
        seed: Decides start weights and batches.
        dtype: Precision of the training. In float32 our error against Keras' float64 run is held against Keras' own.
        seeds: Trainings of 10 epochs for rung 11, each from its own start weights; 20 take about ten minutes.
        devices: Climb rung 12 as well: the training on 2, 3 and 4 processes.
        resume: Climb rung 13 as well: the training killed and gone on with.
        mutants: Climb with the wrong ports of lit_mnist/mutants.py as well, which must be stopped at their rungs.
        report: Directory to write to: report.html, a page to read or send; parity.json; pictures.
        data_dir: Where the data set is, or is to be put.
    """
    config = dict(locals())  # before any other variable is set: the flags and their values
    optional = [number for number, asked_for in ((11, seeds), (12, devices), (13, resume)) if asked_for]
    wanted = sorted(set(rungs or [*range(1, FIRST_OPTIONAL), *optional]))
    if not set(wanted) <= set(RUNGS):
        raise InputError(f"--rungs {rungs}: expected numbers from 1 to 13")
    if steps > STEPS_PER_EPOCH and steps % STEPS_PER_EPOCH:
        raise InputError(f"--steps {steps}: expected at most {STEPS_PER_EPOCH}, or whole epochs of as many")
    if rungs == []:
        raise InputError("--rungs []: expected numbers from 1 to 13; null takes the usual ones")
    for number, flag, value in ((12, "devices", devices), (13, "resume", resume)):
        if (number in wanted) != value:
            raise InputError(f"--{flag} {value}: rung {number}, and no other, goes with --{flag} true")
    if (11 in wanted) != (seeds > 0):
        raise InputError(f"--seeds {seeds}: rung 11 takes the results of at least 2 seeds, best 20; no other rung does")
    if seeds == 1:
        raise InputError("--seeds 1: a single run has no spread; expected at least 2, best 20")

    from keras_ref.parity.display import (
        Display,
        caught_line,
        conclusion,
        make_console,
        progress_line,
        stated_beforehand,
        table,
    )
    from keras_ref.parity.pitfalls import Caught, catch
    from keras_ref.parity.report import gather, prepare_report, write_report

    if report is not None:
        prepare_report(Path(report))
    console = make_console()
    verdicts: list[Verdict] = []
    caught: list[Caught] = []
    with (
        tempfile.TemporaryDirectory(prefix="parity-") as directory,
        Workers(candidate, Path(directory), data_dir) as workers,
        workers.ended_by_signals(),
        Display(console, candidate) as display,
    ):
        workers.tell = display.tell
        if seeds:
            display.print(stated_beforehand(seeds))
        for verdict in climb(workers, wanted, steps, seed, dtype, seeds):
            verdicts.append(verdict)
            display.print(progress_line(verdict))
            if not verdict.holds:
                break
        for mutant in catch(workers, {*range(1, FIRST_OPTIONAL), *wanted}) if mutants else ():
            caught.append(mutant)
            display.print(caught_line(mutant))
        said = conclusion(verdicts, caught, candidate, steps)
        console.print(table(verdicts))
        display.print(said)
        if report is not None:
            write_report(Path(report), gather(config, verdicts, caught, said, workers))
            display.print(f"Report: {Path(report) / 'report.html'}")
    return 0 if all(verdict.holds for verdict in verdicts) and all(one.as_predicted for one in caught) else 1


def command(*flags: Any, **named_flags: Any) -> int:
    """Exit code 1 is for a rung that does not hold: what the system refuses could not be run."""
    try:
        return parity(*flags, **named_flags)
    except OSError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    run(functools.wraps(parity)(command), prog="python -m keras_ref.parity")

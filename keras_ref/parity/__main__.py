"""python -m keras_ref.parity: prove or refute that a port trains exactly as the documented Keras model does."""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lit_mnist.errors import InputError
from lit_mnist.runs.command import NonNegativeInt, PositiveInt, Seed, run
from lit_mnist.runs.signals import exit_on_signals


def parity(
    candidate: str = "lit_mnist:LitMNIST",
    rungs: list[int] | None = None,
    steps: PositiveInt = 600,
    seed: Seed = 0,
    dtype: Literal["both", "float64", "float32"] = "both",
    seeds: NonNegativeInt = 0,
    devices: bool = False,
    resume: bool = False,
    mutants: bool = False,
    report: str | None = None,
    data_dir: str = "data",
) -> int:
    """Prove or refute that a port trains exactly as the documented Keras model does, rung by rung.

    Both sides train on the same batches from the same weights, each in a process of its own; their traces are
    compared. The ladder stops at the first rung that does not hold and says where to look. Exit code 0 if all rungs
    hold, 1 if one does not, 2 if it could not be run.

    Args:
        candidate: The port, a LightningModule, as package.module:Class (lit_mnist/trace/candidate.py says what it
            offers).
        rungs: Numbers of the rungs to climb, as in [1,2,5]; null takes 1 to 10, 11 with --seeds, 12 with --devices, 13
            with --resume.
        steps: Length of the trajectory; the documented training has 6000.
        seed: Decides start weights and batches.
        dtype: Precision of the training. In float32 our error against Keras' float64 run is held against Keras' own.
        seeds: Trainings of 10 epochs for rung 11, each from its own start weights; 20 take about ten minutes.
        devices: Climb rung 12 as well: the training on 2, 3 and 4 processes.
        resume: Climb rung 13 as well: the training killed and resumed.
        mutants: Climb with the wrong ports of lit_mnist/mutants.py as well, which must be stopped at their rungs.
        report: Directory to write to: report.html, a page to read or send; parity.json; pictures.
        data_dir: Where the data set is; files that are not there are those that ship with lit_mnist.
    """
    config = dict(locals())  # before any other variable is set: the flags and their values
    numbers = wanted_rungs(config)

    from keras_ref.parity.display import (
        Display,
        conclusion,
        make_console,
        mutant_line,
        progress_line,
        stated_beforehand,
        table,
    )
    from keras_ref.parity.pitfalls import climb_with_mutants
    from keras_ref.parity.report import gather, prepare_report, write_report
    from keras_ref.parity.rungs import USUAL, Verdict, climb
    from keras_ref.parity.sides import Sides

    if report is not None:
        prepare_report(Path(report))
    console = make_console()
    verdicts: list[Verdict] = []
    results = []
    exit_on_signals()
    with (
        Display(console, candidate) as display,
        tempfile.TemporaryDirectory(prefix="parity-") as directory,
        Sides(candidate, Path(directory), data_dir, steps, seed, seeds, display.update) as sides,
    ):
        if seeds:
            display.print(stated_beforehand(seeds))
        for verdict in climb(sides, numbers, dtype):
            verdicts.append(verdict)
            display.print(progress_line(verdict))
            if not verdict.holds:
                break
        for result in climb_with_mutants(sides, {*USUAL, *numbers}) if mutants else ():
            results.append(result)
            display.print(mutant_line(result))
        all_steps = int(sides.facts()[1]["steps"]) if any("long" in one.rung.trainings for one in verdicts) else 0
        text = conclusion(verdicts, results, candidate, steps, all_steps)
        console.print(table(verdicts))
        display.print(text)
        if report is not None:
            write_report(Path(report), gather(config, verdicts, results, text, sides))
            display.print(f"Report: {Path(report) / 'report.html'}")
    return 0 if all(verdict.holds for verdict in verdicts) and all(result.as_predicted for result in results) else 1


def wanted_rungs(flags: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the rungs that the flags of `parity` ask for.

    Raises:
        InputError: if there is none of such a number, or a rung and its flag do not go together.
    """
    from keras_ref.parity.rungs import LIST

    numbers = [rung.number for rung in LIST if not rung.flag or flags[rung.flag]]
    if flags["rungs"] is not None:
        numbers = sorted(set(flags["rungs"]))
    if not numbers or not set(numbers) <= {rung.number for rung in LIST}:
        raise InputError(f"--rungs {flags['rungs']}: expected numbers from 1 to {len(LIST)}; null takes the usual ones")
    for rung in LIST:
        if rung.flag and (rung.number in numbers) != bool(flags[rung.flag]):
            raise InputError(
                f"--{rung.flag} {flags[rung.flag]}: rung {rung.number}, and no other, goes with "
                f"--{rung.flag} {rung.value}"
            )
    if flags["seeds"] == 1:
        raise InputError("--seeds 1: a single run has no spread; expected at least 2, best 20")
    return numbers


def command(*flags: Any, **named_flags: Any) -> int:
    """Exit code 1 is for a rung that does not hold: what the system refuses could not be run."""
    try:
        return parity(*flags, **named_flags)
    except OSError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    run(functools.wraps(parity)(command), prog="python -m keras_ref.parity")

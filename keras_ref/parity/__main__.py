"""python -m keras_ref.parity: prove or refute that a port trains exactly as its Keras original does."""

import inspect
from pathlib import Path
from typing import Any, Literal

from lit_mnist.errors import InputError
from lit_mnist.runs.command import BatchSize, NonNegativeInt, PositiveInt, Seed, run, with_code_2
from lit_mnist.runs.signals import exit_on_signals


def parity(
    candidate: str = "lit_mnist:LitMNIST",
    reference: str | None = None,
    data: str | None = None,
    layers: str | None = None,
    rungs: list[int] | None = None,
    steps: PositiveInt = 600,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    dtype: Literal["both", "float64", "float32"] = "both",
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow",
    backends: bool = False,
    seeds: NonNegativeInt = 0,
    accelerator: Literal["cpu", "gpu", "mps"] = "cpu",
    devices: bool = False,
    resume: bool = False,
    mutants: bool = False,
    report: str | None = None,
    data_dir: str = "data",
    export_golden: str | None = None,
    import_golden: str | None = None,
    compare: list[str] | None = None,
) -> int:
    """Prove or refute that a port trains exactly as its Keras original does, rung by rung.

    The original is the documented Keras model, or another one that --reference and --data name. Both sides train on
    the same batches from the same weights, each in a process of its own; their traces are compared. The ladder stops
    at the first rung that does not hold and says where to look. Exit code 0 if all rungs hold, 1 if one does not, 2 if
    it could not be run.

    Args:
        candidate: The port, a LightningModule, as package.module:Class; lit_mnist/trace/candidate.py says what one of
            the documented model offers, lit_mnist/trace/mapped.py what one of another does.
        reference: The original, as package.module:function, which returns a built and compiled Keras model, or a
            .keras file; null for the documented model.
        data: The examples of that model, as package.module:function, which returns (x, y), or ((x, y), (x_test,
            y_test)), as Keras takes them; null for MNIST.
        layers: File (.yaml) that says which module is which layer, a line each, where names do not say it.
        rungs: Numbers of the rungs to climb, as in [1,2,5]; null takes 1 to 10, 11 with --seeds, 12 with --devices, 13
            with --resume.
        steps: Length of the trajectory; the documented training has 6000.
        batch_size: Examples in a step of the trajectory of another model; the documented one has 100.
        seed: Decides start weights and batches.
        dtype: Precision of the training. In float32 our error against Keras' float64 run is held against Keras' own.
        backend: What Keras runs on in float32. Float64 it keeps on TensorFlow alone, whose float64 run is what all are
            held against.
        backends: Instead of a climb, Keras on all backends that are installed and the port, side by side in float32.
        seeds: Trainings for rung 11, each from its own start weights: of 10 epochs, 20 in about ten minutes; of another
            model with as many epochs as --steps fills, on both sides.
        accelerator: What the port is trained on; Keras, and rungs 12 and 13, stay on the CPU.
        devices: Climb rung 12 as well: the training on 2, 3 and 4 processes.
        resume: Climb rung 13 as well: the training killed and resumed.
        mutants: Climb with the wrong ports of lit_mnist/mutants.py as well, which must be stopped at their rungs.
        report: Directory to write to: report.html, a page to read or send; parity.json; pictures.
        data_dir: Where MNIST is; files that are not there are those that ship with lit_mnist.
        export_golden: File (.npz) to write what Keras' side said to.
        import_golden: File that such a climb wrote, in place of Keras' side, which then need not be installed.
        compare: Instead of a climb, two files that hold recorded traces, OURS.npz THEIRS.npz, whoever made them; in
            float32 a third, THEIRS in float64. docs/traces.md has the format.
    """
    flags = dict(locals())  # before any other variable is set: the flags and their values

    from keras_ref.parity.display import Display, make_console, mutant_line, progress_line, stated_beforehand, table
    from keras_ref.parity.pitfalls import climb_with_mutants
    from keras_ref.parity.report import gather, prepare_report, write_report
    from keras_ref.parity.result import climb_rungs, opened, said, wanted_rungs
    from keras_ref.parity.result import export_golden as write_golden
    from keras_ref.parity.rungs import USUAL

    if compare is not None:
        return compare_files(flags, compare)
    if backends:
        return run_backends(flags)
    numbers = wanted_rungs(flags)
    if mutants:
        check_mutants(flags)
    if report is not None:
        prepare_report(Path(report))
    console = make_console()
    exit_on_signals()
    with Display(console, candidate) as display, opened(flags, display.update) as sides:
        if seeds and not data:
            display.print(stated_beforehand(seeds))
        verdicts = climb_rungs(sides, flags, display.print, lambda verdict: display.print(progress_line(verdict)))
        write_golden(sides, flags)
        results = []
        for result in climb_with_mutants(sides, {*USUAL, *numbers}) if mutants else ():
            results.append(result)
            display.print(mutant_line(result))
        text = said(sides, flags, verdicts, results)
        console.print(table(verdicts))
        display.print(text)
        if report is not None:
            write_report(Path(report), gather(flags, verdicts, results, text, sides))
            display.print(f"Report: {Path(report) / 'report.html'}")
    return exit_code(verdicts, results)


def exit_code(verdicts: list[Any], results: list[Any]) -> int:
    """Return 0 if all rungs hold and all wrong ports were stopped as predicted, 1 if not, 2 if nothing was compared."""
    if not any(verdict.was_run for verdict in verdicts):
        return 2
    return 0 if all(verdict.holds for verdict in verdicts) and all(result.as_predicted for result in results) else 1


def check_mutants(flags: dict[str, Any]) -> None:
    """Refuse flags that do not go with --mutants."""
    from keras_ref.parity.pitfalls import STEPS

    if flags["data"]:
        raise InputError("--mutants true: the wrong ports are ports of the documented model; leave out --data")
    if flags["import_golden"] and flags["steps"] != STEPS:
        raise InputError(f"--mutants true: with --import_golden it takes one of --steps {STEPS}")


def refuse_others(flags: dict[str, Any], mode: str, *taken: str) -> None:
    """Refuse flags that one which stands in place of a climb does not take."""
    for name, parameter in inspect.signature(parity).parameters.items():
        if name not in (mode, *taken) and flags[name] != parameter.default:
            raise InputError(f"--{name} {flags[name]}: does not go with --{mode}; leave it out")


def run_backends(flags: dict[str, Any]) -> int:
    """Train on all backends, show the table, and return the exit code: it finds out, and judges nothing."""
    refuse_others(flags, "backends", "candidate", "steps", "seed", "report", "data_dir")

    from keras_ref.parity.backends import compare_executions, table, write
    from keras_ref.parity.display import Display, make_console
    from keras_ref.parity.report import prepare_report
    from keras_ref.parity.result import opened

    if flags["report"] is not None:
        prepare_report(Path(flags["report"]))
    console = make_console()
    exit_on_signals()
    with Display(console, flags["candidate"]) as display, opened(flags, display.update) as sides:
        findings = compare_executions(sides)
        console.print(table(findings))
        display.print("Error against Keras' float64 run on TensorFlow, in units of that of its float32 run there.")
        for line in findings["not_checked"]:
            display.print(f"Not checked: {line}")
        if flags["report"] is not None:
            write(Path(flags["report"]), findings)
    return 0


def compare_files(flags: dict[str, Any], names: list[str]) -> int:
    """Hold two traces against each other, and return the exit code."""
    from keras_ref.parity.traces import compare_traces, compared_in_words

    refuse_others(flags, "compare")
    paths = [Path(name) for name in names]
    verdicts = compare_traces(paths)
    print(compared_in_words(paths, verdicts))
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    run(with_code_2(parity), prog="python -m keras_ref.parity")

"""python -m keras_ref.record: train Keras and the wrong ports over many seeds, and keep their results.

The results stand in `parity/recorded.json`: the ladder's rung 11 and the README's figures come from there.
"""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.parity.display import Display, make_console
from keras_ref.parity.pitfalls import PITFALLS
from keras_ref.parity.processes import Side
from keras_ref.parity.recorded import RECORDED
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import MARGINS
from lit_mnist.errors import InputError
from lit_mnist.runs.command import NonNegativeInt, run
from lit_mnist.runs.files import check_output, versions, write_file
from lit_mnist.runs.signals import exit_on_signals

PORT = "lit_mnist:LitMNIST"


def record(
    keras: NonNegativeInt = 0,
    port: NonNegativeInt = 0,
    mutants: NonNegativeInt = 0,
    only: list[str] | None = None,
    data_dir: str = "data",
    output: str = str(RECORDED),
) -> None:
    """Train as documented over many seeds and keep the test results: of Keras, of the port, of the wrong ports.

    What is not recorded anew stays in the file as it is. Trainings that are there, made with the same versions on the
    same machine, are not repeated, so that a command that was stopped resumes; to repeat them name another --output.

    Args:
        keras: Trainings of Keras, with seeds 0, 1, ...; those that are there already among them.
        port: Trainings of the port.
        mutants: Trainings of each wrong port of lit_mnist/mutants.py.
        only: Names of those wrong ports to train, as in [SoftmaxTwice]; null takes all.
        data_dir: Where the data set is.
        output: File (.json) to write.
    """
    if not keras + port + mutants:
        raise InputError("nothing to record; expected --keras 20, --port 20 or --mutants 3")
    path = Path(output)
    check_output(path)
    try:
        results_so_far: dict[str, Any] = dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--output {output}: {error}; name a file that this command has written, or a new one"
        ) from error
    made_by = {
        "versions": versions("keras", "tensorflow", "torch", "lightning", "numpy"),
        "machine": platform.platform(),
    }
    # The mistakes of rung 12 are none on one device.
    wrong_ports = [name for name, one in PITFALLS.items() if one.rung < 12]
    if unknown := set(only or []) - set(wrong_ports):
        raise InputError(f"--only {only}: no wrong port {sorted(unknown)[0]}; lit_mnist/mutants.py has them")
    trainings: list[tuple[str, str, Side, int]] = [
        ("keras", "", "theirs", keras),
        ("port", PORT, "ours", port),
        *((name, f"lit_mnist.mutants:{name}", "ours", mutants) for name in (wrong_ports if only is None else only)),
    ]
    exit_on_signals()
    with (
        Display(make_console(), PORT) as display,
        tempfile.TemporaryDirectory(prefix="recorded-") as directory,
        Sides(PORT, Path(directory), data_dir, progress=display.update) as sides,
    ):
        for name, candidate, side, runs in trainings:
            entry = results_so_far.get(name, {})
            if {key: entry.get(key) for key in made_by} != made_by:
                entry = made_by | {metric: [] for metric in MARGINS}
            asked = sides.of(candidate)
            for first in range(len(entry["test_accuracy"]), runs, sides.processes):
                results = asked.results(side, range(first, min(first + sides.processes, runs)))
                for metric in MARGINS:
                    entry[metric] += [round(float(x), 6) for x in results[metric]]
                results_so_far[name] = entry
                write_file(path, (json.dumps(results_so_far, indent=1) + "\n").encode())
            if runs:
                accuracy = np.array(entry["test_accuracy"])
                spread = f"{accuracy.min():.4f} to {accuracy.max():.4f}, {len(accuracy)} trainings"
                display.print(f"{name:<24}accuracy {accuracy.mean():.4f}, {spread}")


if __name__ == "__main__":
    run(record, prog="python -m keras_ref.record")

"""The first losses of the documented training in Keras, in float64: `golden.json`.

`python tests/golden.py` records them anew, with `keras_ref.trace`.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from keras_ref.trace.trainings import training
from lit_mnist.layout import WEIGHTS
from lit_mnist.trace.files import TraceInputs, read_arrays, write_arrays

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 20


def inputs(directory: Path) -> TraceInputs:
    """The documented training's first steps, from the start weights and batches of the ladder."""
    given = training("long", "float64", 0, STEPS, str(directory), directory, WEIGHTS)
    return replace(given, run_id="golden")


def record() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_arrays(directory / "in.npz", inputs(directory).arrays())
        command = ["keras_ref.trace", "--inputs", str(directory / "in.npz"), "--output", str(directory / "out.npz")]
        subprocess.run([sys.executable, "-m", *command], check=True)
        trace = read_arrays(directory / "out.npz")
    golden = {"versions": json.loads(str(trace["versions"])), "loss": trace["loss"].tolist()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record()

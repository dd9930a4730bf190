"""python -m keras_ref.trace: train Keras on given batches from given weights, and keep all that can be compared."""

from pathlib import Path
from typing import Literal

from keras_ref.quiet import import_keras
from lit_mnist.errors import InputError
from lit_mnist.runs.command import run
from lit_mnist.runs.files import check_output
from lit_mnist.trace.files import TraceInputs, write_arrays


def trace(inputs: str, output: str, backend: Literal["tensorflow", "jax", "torch"] = "tensorflow") -> None:
    """Train the documented Keras model on given batches from given weights and keep a trace of every step.

    The training is the real one: the compiled model and its fit. Only the start weights and the order of the images
    are given instead of drawn. lit_mnist.trace does the same in PyTorch Lightning.

    Args:
        inputs: File (.npz) with start weights, batches and settings, as lit_mnist/trace/files.py describes it.
        output: File (.npz) to write.
        backend: What Keras runs on; float64 it keeps on TensorFlow alone.
    """
    check_output(Path(output))
    given = TraceInputs.read(Path(inputs))
    if given.dtype == "float64" and backend != "tensorflow":
        raise InputError(f"--backend {backend}: {inputs} is in float64, which Keras keeps on TensorFlow alone")
    import_keras(backend)

    from keras_ref.trace.training import trace_training

    write_arrays(Path(output), trace_training(given))


if __name__ == "__main__":
    run(trace, prog="python -m keras_ref.trace")

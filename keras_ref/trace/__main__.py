"""python -m keras_ref.trace: train Keras on given batches from given weights, and keep all that can be compared."""

from pathlib import Path

from keras_ref.quiet import import_keras
from lit_mnist.runs.command import run
from lit_mnist.runs.files import check_output
from lit_mnist.trace.files import TraceInputs, write_arrays


def trace(inputs: str, output: str) -> None:
    """Train the documented Keras model on given batches from given weights and keep a trace of every step.

    The training is the real one: the compiled model and its fit. Only the start weights and the order of the images
    are given instead of drawn. lit_mnist.trace does the same in PyTorch Lightning.

    Args:
        inputs: File (.npz) with start weights, batches and settings, as lit_mnist/trace/files.py describes it.
        output: File (.npz) to write.
    """
    check_output(Path(output))
    given = TraceInputs.read(Path(inputs))
    import_keras()

    from keras_ref.trace.training import trace_training

    write_arrays(Path(output), trace_training(given))


if __name__ == "__main__":
    run(trace, prog="python -m keras_ref.trace")

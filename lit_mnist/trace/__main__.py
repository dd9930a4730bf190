"""python -m lit_mnist.trace: train on given batches from given weights, and record all that can be compared."""

from pathlib import Path

from jsonargparse.typing import PositiveInt

from lit_mnist.errors import InputError
from lit_mnist.runs.command import Devices, run
from lit_mnist.trace.files import TraceInputs, write_arrays


def trace(
    inputs: str,
    output: str,
    candidate: str = "lit_mnist:LitMNIST",
    devices: Devices = 1,
    checkpoint: str | None = None,
    kill_after: PositiveInt | None = None,
) -> None:
    """Train a LightningModule on given batches from given weights and record every step.

    The training is the real one: Trainer.fit with the module, its optimizer and the data module. Only the start
    weights and the order of the images are given instead of drawn. keras_ref.trace does the same in Keras.

    Args:
        inputs: File (.npz) with start weights, batches and settings, as lit_mnist.trace.files describes it.
        output: File (.npz) to write.
        candidate: The LightningModule, as package.module:Class.
        devices: How many processes on the CPU train together.
        checkpoint: File of a checkpoint, from which the training goes on if it is there.
        kill_after: Write the checkpoint after so many steps; then each process kills itself (SIGKILL).
    """
    if kill_after is not None and not checkpoint:
        raise InputError(f"--kill_after {kill_after}: give the --checkpoint to write, too")
    for path in (output, *([checkpoint] if checkpoint else [])):
        if Path(path).is_dir():
            raise InputError(f"{path}: a directory; name a file")
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: there is no such directory; make it first")
    given = TraceInputs.read(Path(inputs))

    from lightning.pytorch.utilities import rank_zero_only

    from lit_mnist.trace.recording import record

    file = Path(checkpoint) if checkpoint else None
    recorded = record(given, candidate, devices=devices, checkpoint=file, kill_after=kill_after)
    rank_zero_only(write_arrays)(Path(output), recorded)


if __name__ == "__main__":
    run(trace, prog="python -m lit_mnist.trace")

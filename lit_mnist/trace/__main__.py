"""python -m lit_mnist.trace: train on given batches from given weights, and keep all that can be compared."""

from pathlib import Path
from typing import Literal

from lit_mnist.errors import InputError
from lit_mnist.runs.command import Devices, PositiveInt, run
from lit_mnist.runs.directory import may_be_first_process
from lit_mnist.runs.files import check_output
from lit_mnist.runs.processes import exit_with_parent, run_on_devices, started_by_us, tell_parent
from lit_mnist.trace.files import TraceInputs, write_arrays


def trace(
    inputs: str,
    output: str,
    candidate: str = "lit_mnist:LitMNIST",
    devices: Devices = 1,
    accelerator: Literal["cpu", "gpu", "mps"] = "cpu",
    checkpoint: str | None = None,
    kill_after: PositiveInt | None = None,
    model: str | None = None,
    data: str | None = None,
    layers: str | None = None,
) -> None:
    """Train a LightningModule on given batches from given weights and keep a trace of every step.

    The training is the real one: Trainer.fit with the module, its optimizer and the data module. Only the start
    weights and the order of the images are given instead of drawn. keras_ref.trace does the same in Keras.

    Args:
        inputs: File (.npz) with start weights, batches and settings, as lit_mnist/trace/files.py describes it.
        output: File (.npz) to write.
        candidate: The LightningModule, as package.module:Class.
        devices: How many processes on the CPU train together.
        accelerator: What one process trains on.
        checkpoint: File of a checkpoint, from which the training resumes if it is there.
        kill_after: Write the checkpoint after so many steps; then each process kills itself (SIGKILL).
        model: File (.json) that describes another Keras model than the documented one, as keras_ref.parity writes it.
        data: The examples of that model, as package.module:function.
        layers: File (.yaml) that says which module is which layer of that model, where names do not say it.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    if kill_after is not None and not checkpoint:
        raise InputError(f"--kill_after {kill_after}: give the --checkpoint to write, too")
    if devices > 1 and accelerator != "cpu":
        raise InputError(f"--accelerator {accelerator}: several processes train on the CPU alone; leave out --devices")
    for path in (output, *([checkpoint] if checkpoint else [])):
        check_output(Path(path))
    given = TraceInputs.read(Path(inputs))
    if devices > 1 and not started_by_us():
        command = ["-m", "lit_mnist.trace", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]
        return run_on_devices(command, devices, num_nodes=1, timeout=600)

    from lit_mnist.trace.requests import resolve
    from lit_mnist.trace.training import trace_training

    exit_with_parent()
    file = Path(checkpoint) if checkpoint else None
    port = resolve(candidate, model or "", data or "", layers or "", given.learning_rate, given.dtype)
    arrays = trace_training(
        given, port, devices=devices, checkpoint=file, kill_after=kill_after, accelerator=accelerator
    )
    if may_be_first_process():
        write_arrays(Path(output), arrays)
    return None


if __name__ == "__main__":
    run(trace, prog="python -m lit_mnist.trace", tell_parent=tell_parent)

"""python -m lit_mnist.facts: record what a port is before it trains: its data, its layers, its start weights."""

from pathlib import Path

from lit_mnist.cli import run
from lit_mnist.trace_files import write_arrays


def facts(output: str, candidate: str = "lit_mnist:LitMNIST", data_dir: str = "data", seeds: int = 20) -> None:
    """Record a port's data, layers and start weights. keras_ref.facts records the same of the original.

    Args:
        output: File (.npz) to write.
        candidate: The LightningModule, as package.module:Class.
        data_dir: Where the data set is.
        seeds: How many times to draw start weights.
    """
    from lit_mnist.recording import record_facts

    write_arrays(Path(output), record_facts(candidate, data_dir, seeds))


if __name__ == "__main__":
    run(facts, prog="python -m lit_mnist.facts")

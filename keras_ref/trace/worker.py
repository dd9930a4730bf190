"""The original's side of the comparison, for `keras_ref.parity` (see `lit_mnist.trace.jobs`)."""

import tempfile
from pathlib import Path

import numpy as np

from keras_ref.quiet import import_keras
from lit_mnist.runs.command import run
from lit_mnist.trace.jobs import Tell, serve


def worker() -> None:
    """Record facts, traces and results of the original, as told on standard input."""
    import_keras()

    from keras_ref.trace.__main__ import record, save_model
    from keras_ref.trace.facts import record_facts
    from keras_ref.train import train
    from lit_mnist.trace.files import TraceInputs

    def facts(data_dir: str, seeds: int, tell: Tell) -> dict[str, np.ndarray]:
        return record_facts(data_dir, seeds)

    def trace(inputs: str, tell: Tell) -> dict[str, np.ndarray]:
        return record(TraceInputs.read(Path(inputs)), tell)

    def save(inputs: str, directory: str, tell: Tell) -> dict[str, np.ndarray]:
        save_model(TraceInputs.read(Path(inputs)), Path(directory))
        return {}

    def results(data_dir: str, seed: int, tell: Tell) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as directory:
            summary = train(seed=seed, data_dir=data_dir, output_dir=directory)
        return {name: np.asarray(summary[name]) for name in ("test_accuracy", "test_loss")}

    serve({"facts": facts, "trace": trace, "save": save, "results": results})


if __name__ == "__main__":
    run(worker, prog="python -m keras_ref.trace.worker")

"""The port's side of the comparison, for `keras_ref.parity` (see `lit_mnist.trace.jobs`)."""

from pathlib import Path

import numpy as np

from lit_mnist.runs.command import run
from lit_mnist.trace.jobs import Tell, serve


def worker() -> None:
    """Record facts, traces and results of ports, as told on standard input."""
    from lit_mnist.trace.files import TraceInputs
    from lit_mnist.trace.recording import record, record_facts, record_loaded, record_results

    def facts(candidate: str, data_dir: str, seeds: int, tell: Tell) -> dict[str, np.ndarray]:
        return record_facts(candidate, data_dir, seeds)

    def trace(candidate: str, inputs: str, tell: Tell) -> dict[str, np.ndarray]:
        return record(TraceInputs.read(Path(inputs)), candidate, tell)

    def load(candidate: str, file: str, tell: Tell) -> dict[str, np.ndarray]:
        return record_loaded(candidate, Path(file))

    def results(candidate: str, data_dir: str, seed: int, tell: Tell) -> dict[str, np.ndarray]:
        return record_results(candidate, data_dir, seed, tell=tell)

    serve({"facts": facts, "trace": trace, "load": load, "results": results})


if __name__ == "__main__":
    run(worker, prog="python -m lit_mnist.trace.worker")

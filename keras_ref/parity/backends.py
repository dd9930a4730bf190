"""Four executions of one model: Keras on each backend that is installed, and the port, rung by rung, in float32."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from keras_ref.parity.comparisons import Comparison
from keras_ref.parity.report import number, processor
from keras_ref.parity.rungs import LIST, Rung
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import OTHER_COMPUTATION
from lit_mnist.runs.files import versions, write_file

OTHERS = ("torch", "jax")  # backends of Keras beside TensorFlow
NOT_CHECKED = (
    "Rungs 1 to 3: each backend draws start weights and orders in its own way, of the same distribution; the trainings "
    "here start from given weights, in a given order.",
    "Rung 4 in other units: weights go into a model and back without any error, or they do not.",
    "Rungs 11 to 13: trainings over seeds were recorded on TensorFlow; devices and resuming are the port's affair.",
)


def compare_executions(sides: Sides) -> dict[str, Any]:
    """Train in float32 on all backends and with the port, and hold each against TensorFlow's float64 run.

    Returns:
        As JSON can hold it: `executions`, names; `rows`, of each rung and each of its trainings `number`, `name`,
        `training` and `errors`, of each execution the error in units of that of Keras on TensorFlow and `what` it was
        found in; `not_checked`; `steps`, `seed`, `versions`, `machine`, `written`.
    """
    installed = [backend for backend in OTHERS if find_spec(backend)]
    rows = []
    for rung in LIST:
        for training in rung.trainings:
            ours, theirs = sides.trace(training, "float32")
            traces = {f"Keras on {one}": _with(sides, one).reference(training, "float32") for one in installed}
            exact = sides.reference(training, "float64")
            errors = {name: _worst(rung, trace, theirs, exact) for name, trace in (traces | {"the port": ours}).items()}
            rows.append({"number": rung.number, "name": rung.name, "training": training, "errors": errors})
    return {
        "candidate": sides.candidate,
        "executions": [*(f"Keras on {one}" for one in installed), "the port"],
        "rows": rows,
        "not_checked": [*NOT_CHECKED, *(f"Keras on {one}: not installed." for one in OTHERS if one not in installed)],
        "steps": sides.steps,
        "seed": sides.seed,
        "versions": versions("keras", "tensorflow", *installed, "torch", "lightning"),
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def _with(sides: Sides, backend: str) -> Sides:
    return sides.of(sides.candidate, backend=backend)


def _worst(rung: Rung, trace: Any, theirs: Any, exact: Any) -> dict[str, Any]:
    """Return the largest error of a trace in units of Keras' own on TensorFlow, and what it was found in."""
    compared = [one for one in rung.check(trace, theirs, exact, None) if isinstance(one, Comparison)]
    worst = max(compared, key=lambda one: one.difference)
    return {"error": number(worst.difference), "what": worst.what}


def cells(findings: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table: a rung, and of each execution the largest error over the trainings of the rung.

    Trainings in which an execution computes something else (`OTHER_COMPUTATION`) are named beside it.
    """
    by_rung: dict[str, list[Mapping[str, Any]]] = {}
    for row in findings["rows"]:
        by_rung.setdefault(f"{row['number']} {row['name']}", []).append(row)
    return [[rung, *(_cell(rows, name) for name in findings["executions"])] for rung, rows in by_rung.items()]


def _cell(rows: Sequence[Mapping[str, Any]], execution: str) -> str:
    errors = {row["training"]: row["errors"][execution]["error"] for row in rows}
    alike = [error for error in errors.values() if error is not None and error <= OTHER_COMPUTATION]
    others = {training: error for training, error in errors.items() if error is None or error > OTHER_COMPUTATION}
    words = [f"{max(alike):.2g}"] if alike else []
    words += [f"{training}: {'no number' if error is None else f'{error:.0e}'}" for training, error in others.items()]
    return "; ".join(words)


def table(findings: Mapping[str, Any]) -> Table:
    """Show the table in the terminal."""
    rows = Table("rung", "Keras on TensorFlow", *findings["executions"])
    for rung, *errors in cells(findings):
        rows.add_row(rung, "1", *errors)
    return rows


def markdown(findings: Mapping[str, Any]) -> str:
    """Return the table as pages have it."""
    header = ["rung", "Keras on TensorFlow", *findings["executions"]]
    rows = [header, ["---"] * len(header), *([rung, "1", *errors] for rung, *errors in cells(findings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(directory: Path, findings: Mapping[str, Any]) -> None:
    """Write `backends.json`."""
    write_file(directory / "backends.json", (json.dumps(findings, indent=1, allow_nan=False) + "\n").encode())

"""The report of a climb: `parity.json`, all that was found, and `report.html`, a page made of it and nothing else."""

import io
import json
import math
import os
import platform
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref.parity.checks import STATES, over_seeds
from keras_ref.parity.comparisons import largest_difference, relative_error
from keras_ref.parity.display import mapping_lines
from keras_ref.parity.pitfalls import PITFALLS, MutantResult
from keras_ref.parity.recorded import accuracy_lost, cost
from keras_ref.parity.rungs import Verdict
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import FLOAT64
from lit_mnist.errors import InputError
from lit_mnist.runs.files import versions, write_file
from lit_mnist.trace.files import Arrays

THRESHOLDS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # nats; beyond which two losses of a step are said to have parted
TENSORS = (*(f"{kind}/" for kind in STATES), "probabilities")  # how the names of what is compared at the end begin


def prepare_report(directory: Path) -> None:
    """Make the directory of a report.

    Raises:
        InputError: if it cannot be written to; it is better to know before the work than after it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("parity.json", "report.html"):
            if (directory / name).is_dir():
                raise IsADirectoryError(f"{name} in it is a directory")
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"--report {directory}: {error}; give a directory that can be written") from error


def write_report(directory: Path, findings: Mapping[str, Any]) -> None:
    """Write `parity.json`, `report.html` and its pictures, of what `gather` returned."""
    from keras_ref.parity import report_figures

    write_file(directory / "parity.json", (json.dumps(findings, indent=1, allow_nan=False) + "\n").encode())
    figures = report_figures.draw(findings)
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_file(directory / f"{name}.png", picture.getvalue())
    pictures = {name: report_figures.svg(figure, name) for name, figure in figures.items()}
    write_file(directory / "report.html", render(findings, pictures).encode())


def render(findings: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page: everything is in it, nothing is loaded from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("keras_ref.parity", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flags"] = lambda text: Markup(re.sub(r"(--\w+ \S+)", r"<code>\1</code>", str(escape(text))))
    environment.filters["code"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    return environment.get_template("report.html").render(findings, pictures=pictures)


def gather(
    config: Mapping[str, Any], verdicts: Sequence[Verdict], mutants: Sequence[MutantResult], text: str, sides: Sides
) -> dict[str, Any]:
    """Gather all that came out of a climb, as JSON can hold it; None stands for what is no number.

    Args:
        config: the flags of the command.
        verdicts: of the rungs that were climbed.
        mutants: where the wrong ports were stopped, if they were run.
        text: the conclusion, as the terminal shows it.
        sides: with the traces of the trainings.
    """
    return {
        "candidate": config["candidate"],
        "holds": all(verdict.holds for verdict in verdicts) and all(mutant.as_predicted for mutant in mutants),
        "conclusion": text.splitlines(),
        "command": command_line(config),
        "steps": config["steps"],
        "mapping": mapping_lines(sides.mapping, sides.model) if sides.data else [],
        "rungs": [rung(verdict) for verdict in verdicts],
        "trajectory": trajectory(sides, verdicts),
        "distribution": distribution(sides)
        if any(verdict.rung.name == "distribution" and verdict.was_run for verdict in verdicts)
        else None,
        "mutants": [mutant(one) for one in mutants],
        "float64": FLOAT64,
        "versions": versions("torch", "lightning", "numpy") | of_keras(sides),
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def rung(verdict: Verdict) -> dict[str, Any]:
    comparisons = [
        {"what": one.what, "difference": number(one.difference), "tolerance": one.tolerance, "holds": one.holds}
        for one in verdict.comparisons
    ]
    return {
        "number": verdict.rung.number,
        "name": verdict.rung.name,
        "compared": verdict.rung.compared,
        "dtype": verdict.dtype,
        "holds": verdict.holds,
        "figure": verdict.figure,
        "comparisons": comparisons,
    }


def trajectory(sides: Sides, verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return what rung 9 looked at, of each precision that got there; None if none did.

    - `exact`: what Keras' float64 run stands for: of another model than the documented one, which is compared with
      constants that keep their bits, that run;
    - `losses`: of every step, by side and precision;
    - `parted`: for each pair of trainings, the first step (from 1) at which their losses differ by more than each of
      `thresholds`, None where none does;
    - `tensors`: for each tensor, in float64 the largest difference of any element, in float32 the root
      mean square error of each side against Keras' float64 run, relative to the tensor's own.
    """
    dtypes = [verdict.dtype for verdict in verdicts if verdict.rung.name == "trajectory"]
    if not dtypes:
        return None
    training = "long"
    if sides.data:  # whose float32 training is a brief one
        dtypes = ["float64"] if "float64" in dtypes else ["float32"]
        training = "long" if dtypes == ["float64"] else "brief"
    traces: dict[tuple[str, str], Arrays] = {}
    for dtype in dtypes:
        traces["port", dtype], traces["keras", dtype] = sides.trace(training, dtype)
    unrounded = sides.unrounded(training)
    exact = traces["keras", "float64"] = sides.reference(training, "float64") if unrounded is None else unrounded

    parted = _parted(traces)
    tensors: dict[str, dict[str, float | None]] = {name: {} for name in exact if name.startswith(TENSORS)}
    for side, dtype in traces:
        for name in tensors:
            array = traces[side, dtype].get(name)
            if dtype == "float32":
                tensors[name][f"{side} {dtype}"] = number(relative_error(array, exact[name]))
            elif side == "port":
                tensors[name][f"{side} {dtype}"] = number(largest_difference(array, exact[name])[0])
    losses = {" ".join(key): [number(loss) for loss in trace["loss"]] for key, trace in traces.items()}
    return {
        "exact": "as it is" if unrounded is None else "unrounded",
        "losses": losses,
        "thresholds": THRESHOLDS,
        "parted": parted,
        "tensors": tensors,
    }


def _parted(traces: Mapping[tuple[str, str], Arrays]) -> list[dict[str, Any]]:
    pairs = [((side, "float32"), ("keras", dtype)) for side in ("port", "keras") for dtype in ("float32", "float64")]
    pairs = [(("port", "float64"), ("keras", "float64")), *(pair for pair in pairs if pair[0] != pair[1])]
    parted = []
    for one, other in pairs:
        if one in traces and other in traces:
            losses_of_both = (traces[one]["loss"], traces[other]["loss"])
            steps = min(map(len, losses_of_both))  # a candidate may stop early
            apart = np.nan_to_num(np.abs(losses_of_both[0][:steps] - losses_of_both[1][:steps]), nan=np.inf)
            first = [int(np.argmax(apart > limit)) + 1 if (apart > limit).any() else None for limit in THRESHOLDS]
            parted.append({"one": " ".join(one), "other": " ".join(other), "first": first, "last": number(apart[-1])})
    return parted


def distribution(sides: Sides) -> dict[str, Any] | None:
    """Return the test results of every run of both sides, and the margins; None if none could be compared."""
    ours, theirs, margins = over_seeds(sides)
    runs = {
        name: {
            "port": [float(x) for x in ours[name]],
            "keras": [float(x) for x in theirs[name]],
            "margin": float(margin),
        }
        for name, margin in margins.items()
    }
    return runs or None


def mutant(one: MutantResult) -> dict[str, Any]:
    """Say where a mutant was stopped, and what its mistake costs as far as it was recorded."""
    pitfall, lost = PITFALLS[one.name], accuracy_lost(one.name)
    return {
        "name": one.name,
        "mistake": pitfall.mistake,
        "right": pitfall.right,
        "predicted": pitfall.rung,
        "rung": one.rung,
        "what": one.what,
        "difference": number(one.difference),
        "as_predicted": one.as_predicted,
        "accuracy_lost": number(lost[0]) if lost else None,
        "cost": cost(one.name),
    }


def of_keras(sides: Sides) -> dict[str, str]:
    """Return the versions of what answered for Keras' side."""
    if sides.golden:
        return {name: sides.golden.versions[name] for name in ("keras", "tensorflow")}
    return versions("keras", *dict.fromkeys(("tensorflow", sides.backend)))


def command_line(config: Mapping[str, Any]) -> str:
    """Return the command that gives the same again; where the data set and the report are is left to the reader."""
    # What is false, 0 or null is so by default.
    flags = [
        f"--{name} {shlex.quote(json.dumps(value) if not isinstance(value, str) else value)}"
        for name, value in config.items()
        if value and name not in ("data_dir", "report") and (name != "batch_size" or config["data"])
        if (name, value) != ("backend", "tensorflow")
    ]
    return " ".join(["python -m keras_ref.parity", *flags])


def number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

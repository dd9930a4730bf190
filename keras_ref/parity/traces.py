"""Hold two recorded traces against each other, whoever made them; docs/traces.md has the format."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from keras_ref.parity import checks
from keras_ref.parity.comparisons import Comparison, NotChecked, equal
from keras_ref.parity.display import first_divergence, not_checked
from keras_ref.parity.rungs import RUNGS, Verdict
from lit_mnist.errors import InputError
from lit_mnist.trace.files import Arrays, read_arrays

STATES = "|".join(checks.STATES)
OF_STEPS = re.compile(rf"(activations|training|gradients|after(?=/\d+/(?:{STATES})/))/(\d+)/(.+)")
OTHERS = re.compile(rf"loss|accuracy|probabilities|history/.+|loaded/.+|({STATES})/.+")
OF_ITSELF = ("run_id", "versions")  # what a trace says of itself
AXES = {"loss": 1, "accuracy": 1, "probabilities": 2}


def compare_traces(paths: Sequence[Path]) -> list[Verdict]:
    """Compare what two traces both have, up to the first rung that does not hold.

    What happens at the first recorded step comes first, then what the updates leave behind, then later steps: the
    order in which a difference arises.

    Args:
        paths: ours and theirs; in float32 a third, theirs in float64.

    Raises:
        InputError: if a file is no trace, they are of different trainings, or nothing can be compared.
    """
    if len(paths) not in (2, 3):
        raise InputError(f"--compare: {len(paths)} of a file; expected OURS.npz THEIRS.npz")
    traces = [read_trace(path) for path in paths]
    ids = {str(trace["run_id"]) for trace in traces[:2] if "run_id" in trace}
    if len(ids) > 1:
        raise InputError(f"--compare: {paths[0]} and {paths[1]} are of different trainings: run_id {' and '.join(ids)}")
    dtype = (
        "float32" if any(array.dtype == np.float32 for trace in traces[:2] for array in trace.values()) else "float64"
    )
    if dtype == "float32" and len(paths) == 2:
        raise InputError(
            "--compare: the traces are in float32; add THEIRS in float64 as a third file, to say how far off"
        )
    if dtype == "float64" and len(paths) == 3:
        raise InputError(f"--compare: the traces are in float64; leave out {paths[2]}")
    shared = [name for name in traces[0] if _is_known(name) and all(name in trace for trace in traces)]
    if dtype == "float32":  # the steps are taken together
        shared = [name for name in shared if name not in _now_and_then(shared)]
    if not shared:
        raise InputError(f"--compare: {paths[0]} and {paths[1]} have nothing in common; docs/traces.md lists the keys")
    ours, theirs, *exact = ({name: trace[name] for name in shared} for trace in traces)
    ours |= {name: array for name, array in traces[0].items() if name.partition("|")[0] in theirs}  # see `nearest`
    verdicts: list[Verdict] = []
    for number, found in _looked_at(ours, theirs, exact[0] if exact else None):
        compared = tuple(one for one in found if isinstance(one, Comparison))
        if compared:
            verdicts.append(Verdict(RUNGS[number], dtype, compared))
            if not verdicts[-1].holds:
                break
    last = verdicts.pop()
    return [*verdicts, Verdict(last.rung, dtype, last.comparisons, tuple(_left_out(paths, traces, shared)))]


def read_trace(path: Path) -> dict[str, np.ndarray]:
    """Read a trace; what layers give to the first batch is of step 0.

    Raises:
        InputError: if it cannot be read, or names an array that is none of numbers, or has other axes.
    """
    arrays = read_arrays(path)
    trace = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "activations" and not OF_STEPS.fullmatch(name):
            name = f"activations/0/{rest}"
        trace[name] = array
        if not _is_known(name):
            continue
        if array.dtype.kind not in "fiub" or array.size == 0:
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape}, expected numbers (docs/traces.md)")
        axes = AXES.get(name, 1 if kind == "history" else array.ndim)
        if array.ndim != axes:
            raise InputError(f"{path}: {name} is {array.shape}, expected {axes} axes (docs/traces.md)")
    return trace


def compared_in_words(paths: Sequence[Path], verdicts: Sequence[Verdict]) -> str:
    """Say what was found."""
    last = verdicts[-1]
    rows = [f"{verdict.rung.name:<16}{verdict.dtype:<8} {verdict.figure}" for verdict in verdicts]
    if last.holds:
        count = sum(len(verdict.comparisons) for verdict in verdicts)
        lines = [f"{paths[0]} and {paths[1]} agree in all that both have ({count} comparisons in {last.dtype})."]
    else:
        lines = [f"{paths[0]} and {paths[1]} are of trainings that differ.", *first_divergence(last)]
    return "\n".join([*rows, *lines, *not_checked(verdicts)])


def _looked_at(ours: Arrays, theirs: Arrays, exact: Arrays | None) -> Iterator[tuple[int, checks.Found]]:
    """Yield the number of a rung and what it finds."""
    steps = [int(match[2]) for match in map(OF_STEPS.fullmatch, theirs) if match and match[1] != "after"]
    first, later = (
        [None if side is None else _of_steps(side, wanted) for side in (ours, theirs, exact)]
        for wanted in ({min(steps, default=0)}, set(steps) - {min(steps, default=0)})
    )
    yield 4, (equal(name, ours, theirs, name) for name in theirs if name.startswith("loaded/"))
    yield 5, checks.forward(*first)  # type: ignore[arg-type]  # ours and theirs are there
    if "loss" in theirs and exact is None:  # in float32 a single number is hit by chance
        yield 6, checks.loss({"loss": ours["loss"][:1]}, {"loss": theirs["loss"][:1]})
    yield 7, checks.gradients(*first)  # type: ignore[arg-type]
    yield 8, checks.optimizer(ours, theirs, exact)
    of_later_steps = chain(checks.forward(*later), checks.gradients(*later))  # type: ignore[arg-type]
    yield 9, chain(of_later_steps, checks.trajectory(ours, theirs, exact))
    yield 10, checks.history(ours, theirs, exact)


def _of_steps(arrays: Arrays, steps: set[int]) -> dict[str, np.ndarray]:
    matches = ((name, OF_STEPS.fullmatch(name)) for name in arrays)
    return {name: arrays[name] for name, match in matches if match and int(match[2]) in steps}


def _is_known(name: str) -> bool:
    """Whether a check compares what has this key."""
    return bool(OF_STEPS.fullmatch(name) or OTHERS.fullmatch(name)) and "|" not in name


def _now_and_then(names: Sequence[str]) -> set[str]:
    """Return what is not there at all steps of which its kind was kept."""
    matches = [match for match in map(OF_STEPS.fullmatch, names) if match]
    steps: dict[str, set[str]] = {}
    of_key: dict[tuple[str, str], set[str]] = {}
    for match in matches:
        steps.setdefault(match[1], set()).add(match[2])
        of_key.setdefault((match[1], match[3]), set()).add(match[2])
    return {match[0] for match in matches if of_key[match[1], match[3]] != steps[match[1]]}


def _left_out(paths: Sequence[Path], traces: Sequence[Arrays], shared: Sequence[str]) -> Iterator[NotChecked]:
    """Yield what was not compared, and why."""
    for name in dict.fromkeys(name for trace in traces[:2] for name in trace):
        holders = [str(path) for path, trace in zip(paths, traces, strict=True) if name in trace]
        if name in shared or name in OF_ITSELF or "|" in name:
            continue
        if not _is_known(name):
            yield NotChecked(name, "no key that is compared")
        elif len(holders) < len(paths):
            yield NotChecked(name, f"only {' and '.join(holders)} has it")
        else:
            yield NotChecked(name, "not kept at all steps of its kind")
    if sum("run_id" in trace for trace in traces[:2]) < 2:
        yield NotChecked("whether both are of one training", "run_id is missing")

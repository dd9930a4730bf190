"""A climb from flags to a result, for the command and for `check_port`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_ref.parity.display import conclusion, in_words, mapping_lines
from keras_ref.parity.golden import KEPT, Golden, source_digest
from keras_ref.parity.rungs import LIST, RUNGS, Verdict, climb
from keras_ref.parity.sides import Progress, Sides
from lit_mnist.errors import InputError
from lit_mnist.runs.files import check_output, versions


class ParityError(AssertionError):
    """A port that does not train as its original."""


@dataclass(frozen=True)
class Result:
    """What a climb found.

    Args:
        verdicts: of the rungs, up to the first that does not hold.
        text: what they mean, in words.
    """

    verdicts: tuple[Verdict, ...]
    text: str

    @property
    def holds(self) -> bool:
        """Whether every rung that was run holds, and one was."""
        return all(verdict.holds for verdict in self.verdicts) and any(verdict.was_run for verdict in self.verdicts)

    @property
    def first_divergence(self) -> str | None:
        """Layer, tensor and step of it, in words; None if there is none."""
        if self.holds or not self.verdicts:
            return None
        return in_words(self.verdicts[-1].shown.what)

    def raise_if_failed(self) -> None:
        """Raise a `ParityError` that says where the port and its original part, if they do."""
        if not self.holds:
            raise ParityError(self.text)


def wanted_rungs(flags: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the rungs that the flags of `parity` ask for.

    Raises:
        InputError: if there is none of such a number, or a rung and its flag do not go together.
    """
    numbers = [rung.number for rung in LIST if not rung.flag or flags[rung.flag]]
    if flags["rungs"] is not None:
        numbers = sorted(set(flags["rungs"]))
    if not numbers or not set(numbers) <= {rung.number for rung in LIST}:
        raise InputError(f"--rungs {flags['rungs']}: expected numbers from 1 to {len(LIST)}; null takes the usual ones")
    for rung in LIST:
        if rung.flag and (rung.number in numbers) != bool(flags[rung.flag]):
            raise InputError(
                f"--{rung.flag} {flags[rung.flag]}: rung {rung.number}, and no other, goes with "
                f"--{rung.flag} {rung.value}"
            )
    if flags["seeds"] == 1:
        raise InputError("--seeds 1: a single run has no spread; expected at least 2, best 20")
    return numbers


@contextmanager
def opened(flags: Mapping[str, Any], progress: Progress = lambda *_: None) -> Iterator[Sides]:
    """Return both sides that flags name, and end their processes afterwards.

    Raises:
        InputError: if a part of the comparison is named without the others, or a golden is of another one.
    """
    reference, data = flags["reference"] or "", flags["data"] or ""
    if data and not reference:
        raise InputError(f"--data {data}: give the --reference that is trained on them, too")
    if reference and not data:
        raise InputError(f"--reference {reference}: give the --data that it is trained on, too")
    layers = flags["layers"] or ""
    golden = _golden(flags)
    _check_backend(flags)
    if layers and not data:
        raise InputError(f"--layers {layers}: goes with --reference and --data")
    with (
        tempfile.TemporaryDirectory(prefix="parity-") as directory,
        Sides(
            flags["candidate"],
            Path(directory),
            flags["data_dir"],
            reference=reference,
            data=data,
            layers=layers,
            batch_size=flags["batch_size"],
            steps=flags["steps"],
            seed=flags["seed"],
            seeds=flags["seeds"],
            accelerator=flags["accelerator"],
            progress=progress,
            golden=golden,
            backend=flags["backend"],
        ) as sides,
    ):
        yield sides


def climb_rungs(
    sides: Sides, flags: Mapping[str, Any], show: Callable[[str], None], seen: Callable[[Verdict], None]
) -> list[Verdict]:
    """Climb up to the first rung that does not hold; `show` is given which module stands for which layer before."""
    verdicts = []
    numbers = wanted_rungs(flags)
    if sides.data:
        for line in mapping_lines(sides.mapping, sides.model):
            show(line)
    for verdict in climb(sides, numbers, flags["dtype"]):
        verdicts.append(verdict)
        seen(verdict)
        if not verdict.holds:
            break
    return verdicts


def said(sides: Sides, flags: Mapping[str, Any], verdicts: list[Verdict], mutants: list[Any]) -> str:
    """Return what all verdicts together mean."""
    looked_at = any("long" in verdict.rung.trainings for verdict in verdicts)
    all_steps = int(sides.facts()[1]["steps"]) if looked_at and not sides.data else 0
    model = sides.model if sides.data else None
    text = conclusion(verdicts, mutants, flags["candidate"], flags["steps"], all_steps, model)
    return f"{text}\n{_of_golden(sides.golden)}" if sides.golden else text


def compare(flags: Mapping[str, Any]) -> Result:
    """Climb in silence."""
    wanted_rungs(flags)
    with opened(flags) as sides:
        verdicts = climb_rungs(sides, flags, lambda _: None, lambda _: None)
        export_golden(sides, flags)
        return Result(tuple(verdicts), said(sides, flags, verdicts, []))


def export_golden(sides: Sides, flags: Mapping[str, Any]) -> None:
    """Write what Keras' side says to the rungs asked for, wherever the port was stopped, if flags name a file."""
    if not flags["export_golden"]:
        return
    rungs = [RUNGS[number] for number in wanted_rungs(flags)]
    trainings: set[str] = set()
    for dtype in ("float64",) if flags["dtype"] == "float64" else ("float64", "float32"):
        for training in dict.fromkeys(training for rung in rungs for training in rung.trainings_of(sides, dtype)):
            trainings.add(training)
            if sides.trains:
                for precision in dict.fromkeys(("float64", dtype)):  # the first is the exact one
                    sides.reference(training, precision)
                sides.unrounded(training)
    answers, files = sides.recorded(trained="trained" in trainings and sides.trains)
    made_by = versions("keras", "tensorflow", "numpy")
    Golden(Path(flags["export_golden"]), _plan(flags), made_by, answers, files).write()


def _golden(flags: Mapping[str, Any]) -> Golden | None:
    """Return the golden that flags name, once it is known to be of what else they name."""
    exported, imported = flags["export_golden"], flags["import_golden"]
    if exported and imported:
        raise InputError(f"--export_golden {exported}: nothing new is recorded with --import_golden; leave one out")
    if exported:
        check_output(Path(exported))
    if not imported:
        return None
    golden = Golden.read(Path(imported))
    golden.check(_plan(flags))
    return golden


def _check_backend(flags: Mapping[str, Any]) -> None:
    if flags["backend"] == "tensorflow":
        return
    where = f"--backend {flags['backend']}"
    if flags["dtype"] == "float64":
        raise InputError(f"{where}: Keras keeps float64 on TensorFlow alone; leave out --dtype float64")
    for name in ("export_golden", "import_golden", "mutants"):
        if flags.get(name):
            raise InputError(f"{where}: --{name} goes with Keras on TensorFlow alone; leave one of them out")


def _plan(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the answers of Keras' side."""
    names = ("reference", "data", "seed", "steps", "batch_size")
    plan = {name: flags[name] or ("" if name in ("reference", "data") else flags[name]) for name in names}
    return plan | {"source": source_digest(plan["reference"])}


def _of_golden(golden: Golden) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in golden.versions.items())
    return (
        f"Keras was not run: {golden.path} holds what it said ({versions}). Of arrays with two axes and more than "
        f"{KEPT} numbers, some were compared."
    )

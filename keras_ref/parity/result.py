"""A climb from flags to a result, for the command and for `check_port`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_ref.parity.display import conclusion, in_words, mapping_lines
from keras_ref.parity.rungs import LIST, Verdict, climb
from keras_ref.parity.sides import Progress, Sides
from lit_mnist.errors import InputError


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
        InputError: if a part of the comparison is named without the others.
    """
    reference, data = flags["reference"] or "", flags["data"] or ""
    if data and not reference:
        raise InputError(f"--data {data}: give the --reference that is trained on them, too")
    if reference and not data:
        raise InputError(f"--reference {reference}: give the --data that it is trained on, too")
    layers = flags["layers"] or ""
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
            progress=progress,
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
    return conclusion(verdicts, mutants, flags["candidate"], flags["steps"], all_steps, model)


def compare(flags: Mapping[str, Any]) -> Result:
    """Climb in silence."""
    wanted_rungs(flags)
    with opened(flags) as sides:
        verdicts = climb_rungs(sides, flags, lambda _: None, lambda _: None)
        return Result(tuple(verdicts), said(sides, flags, verdicts, []))

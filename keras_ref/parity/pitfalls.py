"""The mistakes of Keras-to-PyTorch ports that `lit_mnist/mutants.py` makes on purpose, and where the ladder stops each.

`pitfalls.yaml` lists them; the code of a mistake and its entry there have the same name.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files

import yaml

from keras_ref.parity.rungs import RUNGS, USUAL, Verdict, climb
from keras_ref.parity.sides import Sides

STEPS = 60  # of the trajectory, enough for each of them


@dataclass(frozen=True)
class Pitfall:
    """A mistake.

    Args:
        rung: at which the ladder has to stop it.
        named: what the ladder has to name there.
        mistake: what is wrong, in a few words.
        right: how to do it right.
    """

    rung: int
    named: str
    mistake: str
    right: str


TABLE = files("keras_ref.parity") / "pitfalls.yaml"
PITFALLS = {name: Pitfall(**entry) for name, entry in yaml.safe_load(TABLE.read_text()).items()}


@dataclass(frozen=True)
class MutantResult:
    """Where the ladder stopped a mistake, and what it named there; rung 0 for one that climbed to the top."""

    name: str
    rung: int
    what: str
    difference: float
    tolerance: float

    @property
    def as_predicted(self) -> bool:
        return self.rung == PITFALLS[self.name].rung and PITFALLS[self.name].named in self.what


def climb_with_mutants(sides: Sides, numbers: Collection[int]) -> Iterator[MutantResult]:
    """Climb in float64 with every mistake that one of the rungs has to stop: the usual rungs, or the one of a flag."""
    climbs = [(name, _port(sides, name)) for name, pitfall in PITFALLS.items() if pitfall.rung in numbers]
    for i, (name, port) in enumerate(climbs):
        for following, other in climbs[i + 1 : i + 2]:
            if PITFALLS[following].rung in USUAL:
                rungs = USUAL[: USUAL.index(PITFALLS[following].rung) + 1]
                trainings = dict.fromkeys(itertools.chain(*(RUNGS[rung].trainings for rung in rungs)))
                other.look_ahead("ours", trainings, ["float64"])
        yield _climb(port, name)
        port.forget()


def climb_with_mutant(sides: Sides, name: str) -> MutantResult:
    """Climb in float64 with a mistake until the ladder stops it."""
    return _climb(_port(sides, name), name)


def _port(sides: Sides, name: str) -> Sides:
    return sides.of(f"lit_mnist.mutants:{name}", steps=STEPS, seeds=2)


def _climb(port: Sides, name: str) -> MutantResult:
    rung = PITFALLS[name].rung
    return result_of(name, climb(port, USUAL if rung in USUAL else [rung], dtype="float64"))


def result_of(name: str, verdicts: Iterator[Verdict]) -> MutantResult:
    """Return where a climb ends: at the first rung that does not hold, or at the top."""
    for verdict in verdicts:
        if not verdict.holds:
            shown = verdict.shown
            return MutantResult(name, verdict.rung.number, shown.what, shown.difference, shown.tolerance)
    return MutantResult(name, 0, "nothing", 0, 0)

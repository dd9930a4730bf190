"""The port against what Keras said: the ladder climbs the golden that ships, without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from keras_ref.parity.golden import SHIPPED, Golden
from keras_ref.parity.pitfalls import PITFALLS, STEPS, result_of
from keras_ref.parity.rungs import USUAL, climb
from keras_ref.parity.sides import Sides

# What to do if the port is right and Keras has changed.
AGAIN = "docs/traces.md says how to record the golden anew"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    golden = Golden.read(SHIPPED)
    directory = tmp_path_factory.mktemp("golden")
    with Sides("lit_mnist:LitMNIST", directory, "data", steps=STEPS, golden=golden, processes=1) as sides:
        yield sides
        assert {process.side for process in sides.started} == {"ours"}


def test_the_port_climbs_from_weights_to_the_optimizer(recorded: Sides) -> None:
    verdicts = list(climb(recorded, range(4, 9), "float64"))
    assert [verdict.rung.number for verdict in verdicts if verdict.was_run] == list(range(4, 9))
    assert [verdict.shown for verdict in verdicts if not verdict.holds] == [], AGAIN


@pytest.mark.parametrize("mutant", ["FlattensChannelsFirst", "LabelSmoothing", "MaximumForReLU", "NoEpsilonHat"])
def test_a_wrong_port_is_stopped_at_its_rung(mutant: str, recorded: Sides) -> None:
    rung = PITFALLS[mutant].rung
    result = result_of(mutant, climb(recorded.of(f"lit_mnist.mutants:{mutant}"), [rung], "float64"))
    assert result.as_predicted, result


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_port_climbs_to_the_top(dtype: Literal["float64", "float32"], recorded: Sides) -> None:
    verdicts = list(climb(recorded, USUAL, dtype))
    assert {verdict.rung.number for verdict in verdicts if verdict.was_run} == set(USUAL)
    assert [verdict.shown for verdict in verdicts if not verdict.holds] == [], AGAIN


def test_what_ships_is_small() -> None:
    assert Path(SHIPPED).stat().st_size < 3_000_000

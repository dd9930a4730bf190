"""Rung 11: results over seeds, and the test of their equivalence."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from keras_ref.parity import checks
from keras_ref.parity.recorded import recorded
from keras_ref.parity.rungs import climb
from keras_ref.parity.samples import power
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import MARGINS
from keras_ref.record import record
from lit_mnist.errors import InputError
from lit_mnist.trace.files import Arrays
from lit_mnist.trace.training import train_as_documented


def draw(seed: int, runs: int = 20, accuracy: float = 0.984, loss: float = 0.05, spread: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "test_accuracy": rng.normal(accuracy, 0.001 * spread, runs),
        "test_loss": rng.normal(loss, 0.003 * spread, runs),
    }


def holds(ours: Arrays, theirs: Arrays) -> list[bool]:
    return [one.holds for one in checks.equivalence(ours, theirs, MARGINS)]


def test_equal_distributions_are_shown_equal() -> None:
    assert holds(draw(0), draw(1)) == [True, True]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (draw(0, accuracy=0.9815), [False, True]),
        (draw(0, accuracy=0.9865), [False, True]),  # better is different, too
        (draw(0, loss=0.06), [True, False]),
        (draw(0, spread=20), [False, False]),  # too much noise to tell is no proof
        (draw(0, runs=1), [False, False]),
        ({"test_accuracy": np.full(20, np.nan), "test_loss": np.full(20, np.nan)}, [False, False]),
    ],
)
def test_what_is_not_shown_equal_does_not_hold(ours: Arrays, expected: list[bool]) -> None:
    assert holds(ours, draw(1)) == expected


def test_a_port_at_the_margin_passes_in_one_case_of_twenty() -> None:
    passed = np.mean(
        [holds(draw(i, accuracy=0.984 + MARGINS["test_accuracy"]), draw(i + 10_000))[0] for i in range(500)]
    )
    assert 0.02 < passed < 0.09


def spreads_hold(ours: Arrays, theirs: Arrays) -> list[bool]:
    return [one.holds for one in checks.equal_spreads(ours, theirs, MARGINS)]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (draw(0, runs=50), True),
        (draw(0, spread=1.5), True),
        (draw(0, spread=4), False),
        ({name: np.full(20, values[0]) for name, values in draw(0).items()}, False),  # it seeds itself: one training
        ({"test_accuracy": np.full(20, np.nan), "test_loss": np.full(20, np.nan)}, False),
    ],
)
def test_a_spread_that_differs_does_not_hold(ours: Arrays, expected: bool) -> None:
    assert spreads_hold(ours, draw(1, runs=50)) == [expected, expected]


def test_rung_11_stops_a_port_that_seeds_itself(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    once = {name: np.full(20, np.median(recorded()["port"][name])) for name in MARGINS}
    monkeypatch.setattr(sides, "results", lambda side, seeds: once)
    (verdict,) = climb(sides, [11])
    assert not verdict.holds
    assert verdict.shown.what == "spread of test accuracy over seeds: 0 times that of Keras"


def test_spreads_of_none_on_both_sides_are_equal() -> None:
    constant = {name: np.full(20, values[0]) for name, values in draw(0).items()}
    assert spreads_hold(constant, constant) == [True, True]
    assert spreads_hold(draw(0), constant) == [False, False]


def test_equal_spreads_are_taken_for_different_ones_in_one_case_of_a_thousand() -> None:
    passed = [all(spreads_hold(draw(i), draw(i + 10_000, runs=50))) for i in range(500)]
    assert np.mean(passed) > 0.99


def test_power_is_what_drawing_at_random_gives() -> None:
    margin, spread = 0.0025, 0.0025
    passed = [holds(draw(i, spread=2.5), draw(i + 10_000, spread=2.5))[0] for i in range(500)]
    assert power(20, spread, 20, margin) == pytest.approx(np.mean(passed), abs=0.05)


def test_the_recorded_runs_are_at_least_20_of_keras_and_as_many_of_the_port() -> None:
    for side in ("keras", "port"):
        for name in MARGINS:
            assert len(recorded()[side][name]) >= 20
            assert len(set(recorded()[side][name])) > 10  # not one run copied
    assert holds(recorded()["port"], recorded()["keras"]) == [True, True]
    assert spreads_hold(recorded()["port"], recorded()["keras"]) == [True, True]


@pytest.mark.parametrize("name", ["PixelsNotScaled", "PixelsNormalised"])
def test_a_port_with_other_pixels_can_be_recorded(name: str, data_dir: Path) -> None:
    results = train_as_documented(f"lit_mnist.mutants:{name}", str(data_dir), seed=0, epochs=0)
    assert 0 < results["test_accuracy"] < 0.3


def test_a_recording_that_was_stopped_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def results(sides: Sides, side: str, seeds: Sequence[int]) -> Arrays:
        if 3 in seeds and 3 not in trained:
            trained.append(3)
            raise InputError("stopped")
        trained.extend(seeds)
        return {name: np.array(seeds) / 10 for name in MARGINS}

    monkeypatch.setattr(Sides, "results", results)
    monkeypatch.setattr("keras_ref.record.exit_on_signals", lambda: None)
    output = tmp_path / "recorded.json"
    with pytest.raises(InputError, match="stopped"):
        record(port=5, output=str(output))
    record(port=5, output=str(output))
    assert json.loads(output.read_text())["port"]["test_accuracy"] == [0, 0.1, 0.2, 0.3, 0.4]
    assert trained[:2] == [0, 1]
    assert trained.count(0) == trained.count(1) == 1


@pytest.mark.slow
def test_the_results_recorded_of_the_port_are_those_of_its_command(
    tmp_path: Path, data_dir: Path, command: Command
) -> None:
    flags = ["--max_epochs", 1, "--seed", 3, "--data_dir", data_dir, "--output_dir", tmp_path, "--run_name", "one"]
    assert command("-m", "lit_mnist.train", *flags).returncode == 0
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    results = train_as_documented("lit_mnist:LitMNIST", str(data_dir), seed=3, epochs=1)
    assert results["test_accuracy"] == pytest.approx(summary["test_accuracy"], abs=2e-4)
    assert results["test_loss"] == pytest.approx(summary["test_loss"], abs=1e-4)
    assert results["train_loss"].shape == results["train_accuracy"].shape == (1,)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rung_11_passes_the_port_and_stops_the_order_by_classes(sides: Sides) -> None:
    (port,) = climb(sides.of(sides.candidate, seeds=6), [11])  # 20 in the README's full run
    assert port.holds, port.comparisons
    (mutant,) = climb(sides.of("lit_mnist.mutants:ClassByClass", seeds=2), [11])
    assert not mutant.holds

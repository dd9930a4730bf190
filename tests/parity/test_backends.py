"""Keras on its other backends: what is held against them, what is not, and the table of all executions."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Command

from keras_ref.parity import check_port
from keras_ref.parity.__main__ import parity
from keras_ref.parity.backends import OTHERS, cells, markdown
from keras_ref.parity.report import trajectory
from keras_ref.parity.rungs import RUNGS, climb
from keras_ref.parity.sides import Sides
from lit_mnist.errors import InputError

INSTALLED = [one for one in OTHERS if find_spec(one)]  # torch always is
SHIPPED = json.loads((Path(__file__).parents[2] / "keras_ref" / "parity" / "backends.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("backend", INSTALLED)
def test_the_port_is_held_against_keras_on_another_backend(backend: str, sides: Sides) -> None:
    verdicts = list(climb(sides.of(sides.candidate, backend=backend), [2, 4, 6, 8]))
    assert all(verdict.holds for verdict in verdicts), verdicts[-1].shown
    run = [(verdict.rung.number, verdict.dtype) for verdict in verdicts if verdict.was_run]
    assert run == [(4, "float32"), (6, "float32"), (8, "float32")]
    # Only TensorFlow looks for the logits behind a softmax.
    (loss,) = (verdict for verdict in verdicts if (verdict.rung.number, verdict.dtype) == (6, "float32"))
    assert [one.what for one in loss.not_checked] == ["loss of the training saturated"]
    assert f"Keras on {backend} is" in loss.not_checked[0].why


@pytest.mark.slow
@pytest.mark.parametrize("backend", INSTALLED)
def test_a_wrong_port_is_stopped_by_keras_on_another_backend(backend: str, sides: Sides) -> None:
    wrong = sides.of("lit_mnist.mutants:NoEpsilonHat", backend=backend)
    (verdict,) = climb(wrong, [8], "float32")
    assert not verdict.holds
    assert "after/" in verdict.shown.what


def test_float64_and_what_is_drawn_are_not_held_against_another_backend(sides: Sides) -> None:
    port = sides.of(sides.candidate, backend="torch")
    for number, dtype, why in (
        (3, "float32", "in its own way"),
        (9, "float64", "float64 on TensorFlow alone"),
        (11, "float32", "float64 on TensorFlow alone"),
    ):
        (one,) = RUNGS[number].comparisons(port, dtype)
        assert why in one.why, one  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"dtype": "float64"}, "--backend torch: Keras keeps float64 on TensorFlow alone"),
        ({"export_golden": "golden.npz"}, "--backend torch: --export_golden goes with"),
    ],
)
def test_what_another_backend_cannot_do_is_refused(flags: dict[str, Any], says: str, tmp_path: Path) -> None:
    flags = {name: str(tmp_path / value) if name == "export_golden" else value for name, value in flags.items()}
    with pytest.raises(InputError) as error:
        check_port("lit_mnist:LitMNIST", backend="torch", **flags)
    assert str(error.value).startswith(says)
    assert len(str(error.value).splitlines()) == 1


def test_the_table_of_backends_takes_no_flags_of_a_climb() -> None:
    with pytest.raises(InputError, match="--seeds 20: does not go with --backends"):
        parity(backends=True, seeds=20)


def test_a_climb_in_which_nothing_was_compared_does_not_pass(command: Command) -> None:
    finished = command("-m", "keras_ref.parity", "--backend", "torch", "--rungs", "[1]")
    assert finished.returncode == 2
    assert "Nothing of lit_mnist:LitMNIST was compared." in finished.stdout
    assert "holds on rung" not in finished.stdout


def test_a_function_takes_the_flags_of_the_command_and_no_others() -> None:
    for name in ("report", "step"):
        with pytest.raises(TypeError, match=f"check_port has no {name}"):
            check_port("lit_mnist:LitMNIST", **{name: "x"})


def test_the_table_names_trainings_in_which_another_thing_is_computed() -> None:
    def row(training: str, error: float | None) -> dict[str, Any]:
        errors = {"Keras on torch": {"error": error, "what": "loss"}}
        return {"number": 6, "name": "loss", "training": training, "errors": errors}

    findings = {"executions": ["Keras on torch"]}
    findings |= {"rows": [row("cases", 0.91), row("trained", 1.2), row("saturated", 3e5), row("tied", None)]}
    assert cells(findings) == [["6 loss", "1.2; saturated: 3e+05; tied: no number"]]
    assert markdown(findings).splitlines()[2] == "| 6 loss | 1 | 1.2; saturated: 3e+05; tied: no number |"


def test_the_page_of_findings_has_the_table_that_was_found() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    assert markdown(SHIPPED) in page


def test_the_report_on_another_model_holds_it_against_constants_that_keep_their_bits() -> None:
    runs = {name: {"loss": np.array([value])} for name, value in (("ours", 1.0), ("theirs", 2.0), ("unrounded", 3.0))}
    verdict = SimpleNamespace(dtype="float64", rung=RUNGS[9])
    for unrounded, loss, exact in ((runs["unrounded"], 3.0, "unrounded"), (None, 2.0, "as it is")):
        sides = SimpleNamespace(
            data="" if unrounded is None else "my_data:load",
            trace=lambda *_: (runs["ours"], runs["theirs"]),
            reference=lambda *_: runs["theirs"],
            unrounded=lambda _, found=unrounded: found,
        )
        found = trajectory(sides, [verdict])  # type: ignore[arg-type, list-item]
        assert found is not None
        assert (found["losses"]["keras float64"], found["exact"]) == ([loss], exact)

"""Two recorded traces, whoever made them, are held against each other; the page that says how is right."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from keras_ref.parity.traces import compare_traces, compared_in_words
from lit_mnist.errors import InputError
from lit_mnist.trace.files import write_arrays

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
WRITES_INPUTS, PLAIN_LOOP = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMPARES = ["-m", "keras_ref.parity", "--compare", "ours.npz", "theirs.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["lit_mnist.trace", "keras_ref.trace"])
def test_the_example_of_the_page_agrees_with_both_sides(side: str, command: Command, tmp_path: Path) -> None:
    assert "python -m keras_ref.parity --compare ours.npz theirs.npz" in PAGE
    assert command("-c", WRITES_INPUTS + PLAIN_LOOP, cwd=tmp_path)[::2] == (0, "")
    finished = command("-m", side, "--inputs", "in.npz", "--output", "theirs.npz", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    finished = command(*COMPARES, cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    assert "agree in all that both have (32 comparisons in float64)" in finished.stdout
    assert "(only theirs.npz has it)" in finished.stdout


def test_the_example_of_the_page_is_short() -> None:
    assert len(PLAIN_LOOP.splitlines()) <= 32


def trace(**others: np.ndarray) -> dict[str, np.ndarray]:
    """One of three steps, with one of every kind of key."""
    rng = np.random.default_rng(0)
    return {
        "run_id": np.array("one"),
        "versions": np.array("{}"),
        "loss": rng.random(3),
        "accuracy": rng.random(3),
        "activations/layer": rng.random((4, 5)),
        "activations/2/layer": rng.random((4, 5)),
        "training/0/layer": rng.random((4, 5)),
        "gradients/0/layer/kernel": rng.random((5, 2)),
        "gradients/2/layer/kernel": rng.random((5, 2)),
        "after/0/weights/layer/kernel": rng.random((5, 2)),
        "after/2/momentum/layer/kernel": rng.random((5, 2)),
        "loaded/layer/kernel": rng.random((5, 2)),
        "weights/layer/kernel": rng.random((5, 2)),
        "adam_m/layer/kernel": rng.random((5, 2)),
        "history/loss": rng.random(1),
        "probabilities": rng.random((6, 2)),
    } | others


RUNGS = {
    "loaded/layer/kernel": 4,
    "activations/layer": 5,
    "training/0/layer": 5,
    "loss": 6,
    "gradients/0/layer/kernel": 7,
    "after/0/weights/layer/kernel": 8,
    "after/2/momentum/layer/kernel": 8,
    "activations/2/layer": 9,
    "gradients/2/layer/kernel": 9,
    "accuracy": 9,
    "weights/layer/kernel": 9,
    "adam_m/layer/kernel": 9,
    "probabilities": 9,
    "history/loss": 10,
}


def files(tmp_path: Path, *traces: dict[str, np.ndarray]) -> list[Path]:
    paths = [tmp_path / f"{number}.npz" for number in range(len(traces))]
    for path, arrays in zip(paths, traces, strict=True):
        write_arrays(path, arrays)
    return paths


def test_every_kind_of_key_has_a_rung() -> None:
    assert set(RUNGS) == set(trace()) - {"run_id", "versions"}


@pytest.mark.parametrize("name", RUNGS)
def test_a_difference_in_any_key_is_found(name: str, tmp_path: Path) -> None:
    ours = trace()
    ours[name] = ours[name] + 1e-9
    paths = files(tmp_path, ours, trace())
    *below, last = compare_traces(paths)
    assert all(verdict.holds for verdict in below)
    assert not last.holds
    assert (last.rung.number, last.shown.difference) == (RUNGS[name], pytest.approx(1e-9 if RUNGS[name] > 4 else 1.0))
    assert "First divergence" in compared_in_words(paths, [*below, last])


def test_a_difference_is_named_where_it_arises_first(tmp_path: Path) -> None:
    """A wrong optimizer shows in the loss of the second step, and in every gradient from then on."""
    ours, theirs = trace(), trace()
    for name in ("loss", "after/0/weights/layer/kernel", "gradients/2/layer/kernel", "weights/layer/kernel"):
        ours[name] = ours[name] + (np.arange(3) > 0) * 1e-3 if name == "loss" else ours[name] + 1e-3
    *_, last = compare_traces(files(tmp_path, ours, theirs))
    assert last.shown.what.startswith("after/0/weights/layer/kernel")


def test_what_one_side_has_is_reported_as_not_checked(tmp_path: Path) -> None:
    ours, theirs = trace(mine=np.zeros(1)), trace()
    del ours["run_id"], ours["history/loss"], theirs["adam_m/layer/kernel"]
    verdicts = compare_traces(files(tmp_path, ours, theirs))
    assert all(verdict.holds for verdict in verdicts)
    reasons = {one.what: one.why for one in verdicts[-1].not_checked}
    assert reasons == {
        "history/loss": f"only {tmp_path / '1.npz'} has it",
        "adam_m/layer/kernel": f"only {tmp_path / '0.npz'} has it",
        "mine": "no key that is compared",
        "whether both are of one training": "run_id is missing",
    }


def narrow(error: float) -> dict[str, np.ndarray]:
    arrays = trace()
    of_numbers = [name for name, array in arrays.items() if array.dtype == np.float64]
    rounded = {name: arrays[name] * (1 + error * (not name.startswith("loaded/"))) for name in of_numbers}
    return arrays | {name: a if a.ndim == 1 else a.astype(np.float32) for name, a in rounded.items()}


@pytest.mark.parametrize(("error", "holds"), [(1.5e-6, True), (2.6e-6, False), (np.nan, False)])
def test_in_float32_the_error_is_held_against_theirs(error: float, holds: bool, tmp_path: Path) -> None:
    verdicts = compare_traces(files(tmp_path, narrow(error), narrow(-1e-6), trace()))
    assert {verdict.dtype for verdict in verdicts} == {"float32"}
    assert all(verdict.holds for verdict in verdicts) == holds


@pytest.mark.parametrize(
    ("traces", "says"),
    [
        ([trace()], "1 of a file; expected OURS.npz THEIRS.npz"),
        ([trace(), trace(run_id=np.array("two"))], "are of different trainings: run_id"),
        ([narrow(0), narrow(0)], "add THEIRS in float64 as a third file"),
        ([trace(), trace(), trace()], "leave out"),
        ([{"mine": np.zeros(3)}, trace()], "have nothing in common"),
        ([trace(loss=np.array(["a", "b"])), trace()], "loss is <U1 (2,), expected numbers"),
        ([trace(loss=np.zeros((3, 1))), trace()], "loss is (3, 1), expected 1 axes"),
        ([trace(), trace(loss=np.zeros(0))], "loss is float64 (0,), expected numbers"),
        ([trace(probabilities=np.zeros(3)), trace()], "probabilities is (3,), expected 2 axes"),
    ],
)
def test_what_cannot_be_compared_is_refused(traces: list[dict[str, np.ndarray]], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        compare_traces(files(tmp_path, *traces))
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_exit_codes_are_those_of_the_command(command: Command, tmp_path: Path) -> None:
    write_arrays(tmp_path / "ours.npz", trace())
    write_arrays(tmp_path / "theirs.npz", trace() | {"loss": trace()["loss"] + 1})
    (tmp_path / "torn.npz").write_bytes(b"PK")
    for words, code, says in (
        (["theirs.npz", "theirs.npz"], 0, "agree in all that both have"),
        (["ours.npz", "theirs.npz"], 1, "step 0, loss of the batch"),
        (["ours.npz", "torn.npz"], 2, "torn.npz: cannot be read as .npz"),
        (["ours.npz"], 2, "1 of a file"),
        (["ours.npz", "theirs.npz", "--steps", "5"], 2, "--steps 5: does not go with --compare"),
    ):
        finished = command(*COMPARES[:3], *words, cwd=tmp_path)
        assert finished.returncode == code, finished
        assert says in finished.stdout + finished.stderr
        assert len(finished.stderr.splitlines()) == (code == 2)

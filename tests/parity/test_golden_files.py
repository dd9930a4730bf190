"""Goldens: recorded in one place, climbed in another where TensorFlow is not installed; what is wrong is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from keras_ref.parity import check_port
from keras_ref.parity.checks import forward
from keras_ref.parity.comparisons import Comparison, largest_difference
from keras_ref.parity.golden import KEPT, KEPT_ROWS, SHIPPED, Golden, Recorded, alike, comparable, placed, thin, thinned
from keras_ref.parity.rungs import climb
from keras_ref.parity.sides import Sides
from lit_mnist.errors import InputError
from lit_mnist.trace.files import read_arrays, write_arrays

HIDES_KERAS = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder

HIDDEN = ("tensorflow", "keras")


class WithoutKeras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context=DistributionFinder.Context()):
        return () if context.name in HIDDEN else super().find_distributions(context)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutKeras
"""
KERAS = """
import keras


def build_model():
    one = keras.layers.Dense(40, activation="tanh", name="one")
    model = keras.Sequential([keras.Input((5,)), one, keras.layers.Dense(1, name="two")])
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    return model
"""
PORT = """
import lightning as L
import torch
from torch import nn


class Port(L.LightningModule):
    momentum = 0.9

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 40), nn.Linear(40, 1)
        for layer in (self.one, self.two):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.two(self.one(x).tanh())

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)


class OtherMomentum(Port):
    momentum = 0.8


class OtherActivation(Port):
    def forward(self, x):
        return self.two(self.one(x).sigmoid())
"""
DATA = """
import numpy as np


def load():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    return x, np.sin(x.sum(axis=1, keepdims=True))
"""
NAMED = {"--reference": "my_keras:build_model", "--data": "my_data:load", "--steps": 20, "--dtype": "float64"}


def flags(candidate: str, **others: object) -> list[object]:
    named = {**NAMED, "--candidate": f"my_port:{candidate}"} | {f"--{name}": value for name, value in others.items()}
    return [part for pair in named.items() for part in pair]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A directory with a model, its port and its data, and with a golden of them."""
    place = tmp_path_factory.mktemp("recorded")
    for name, code in (("my_keras", KERAS), ("my_port", PORT), ("my_data", DATA)):
        (place / f"{name}.py").write_text(code)
    finished = command("-m", "keras_ref.parity", *flags("Port", export_golden="golden.npz"), cwd=place)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    return place


@pytest.fixture
def elsewhere(recorded: Path, tmp_path: Path) -> Path:
    """Another directory with the same, where Keras and TensorFlow are not found."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sitecustomize.py").write_text(HIDES_KERAS)
    return tmp_path


def climbs(command: Command, place: Path, candidate: str, **others: object) -> Any:
    path = f"{place}:{Path(__file__).parents[2]}"
    words = flags(candidate, import_golden="golden.npz", **others)
    return command("-m", "keras_ref.parity", *words, cwd=place, PYTHONPATH=path)


@pytest.mark.slow
def test_a_golden_is_climbed_where_there_is_no_keras(elsewhere: Path, command: Command) -> None:
    environment = {"PYTHONPATH": str(elsewhere)}
    assert command("-c", "import keras", cwd=elsewhere, **environment).returncode == 1
    finished = climbs(command, elsewhere, "Port", report="report")
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    assert finished.stdout.count(" holds  ") >= 10
    assert "Keras was not run" in finished.stdout
    assert "tensorflow" in (elsewhere / "report" / "parity.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "rung"), [("OtherActivation", 5), ("OtherMomentum", 8)])
def test_a_wrong_port_is_stopped_where_keras_itself_stops_it(
    candidate: str, rung: int, recorded: Path, elsewhere: Path, command: Command
) -> None:
    with_keras = command("-m", "keras_ref.parity", *flags(candidate), cwd=recorded)
    assert f"First divergence, rung {rung} " in with_keras.stdout
    finished = climbs(command, elsewhere, candidate)
    assert finished.returncode == 1
    assert f"First divergence, rung {rung} " in finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("my_keras", "Dense(40", "Dense(41", "--reference my_keras:build_model is not the one"),
        ("my_data", "default_rng(0)", "default_rng(1)", "--data my_data:load: inputs are not those"),
        ("my_data", "np.sin", "np.cos", "--data my_data:load: targets are not those"),
    ],
)
def test_another_model_and_other_data_of_the_same_name_are_refused(
    name: str, old: str, new: str, says: str, elsewhere: Path, command: Command
) -> None:
    path = elsewhere / f"{name}.py"
    path.write_text(path.read_text().replace(old, new))
    finished = climbs(command, elsewhere, "Port")
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert says in line


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(SHIPPED.read_bytes())) and None  # type: ignore[func-returns-value]


def tampered(path: Path) -> None:
    arrays = read_arrays(SHIPPED)
    arrays["numbers/float64"][1000] += 1e-9
    write_arrays(path, arrays)


def pickled(path: Path) -> None:
    np.savez(path, index=np.array([{"a": 1}], dtype=object))


def leads_out(path: Path) -> None:
    golden = Golden.read(SHIPPED)
    replace(golden, path=path, files={"../outside": b"x"}).write()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read as .npz"),
        (damaged(lambda content: content[: len(content) // 2]), "cannot be read as .npz"),
        (damaged(lambda content: content[:900_000] + b"torn" + content[900_004:]), "cannot be read as .npz"),
        (lambda path: write_arrays(path, {"loss": np.zeros(3)}), "not a golden, or damaged (index is missing)"),
        (lambda path: write_arrays(path, {"index": np.zeros(3)}), "not a golden, or damaged"),
        (tampered, "its content is not what was written"),
        (pickled, "cannot be read as .npz"),
        (leads_out, "leads out of its directory"),
    ],
)
def test_a_file_that_is_no_golden_gets_one_line(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    make(tmp_path / "golden.npz")
    with pytest.raises(InputError) as error:
        check_port("lit_mnist:LitMNIST", steps=60, import_golden=str(tmp_path / "golden.npz"))
    assert says in str(error.value)
    assert "pickle" not in str(error.value)  # which NumPy recommends
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": 600}, "--steps 600: --import_golden GOLDEN was recorded with --steps 60"),
        ({"seed": 1}, "--seed 1: --import_golden GOLDEN was recorded with --seed 0"),
        ({"batch_size": 64}, "--batch_size 64: --import_golden GOLDEN was recorded with --batch_size 32"),
        (
            {"reference": "a:b", "data": "c:d"},
            "--reference a:b: --import_golden GOLDEN was recorded with --reference null",
        ),
        ({"export_golden": "other.npz"}, "--export_golden other.npz: nothing new"),
    ],
)
def test_a_golden_of_another_plan_is_refused_with_the_difference(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        check_port("lit_mnist:LitMNIST", import_golden=str(SHIPPED), **({"steps": 60} | arguments))
    assert says.replace("GOLDEN", str(SHIPPED)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_command_refuses_a_golden_with_code_2(command: Command, tmp_path: Path) -> None:
    for words, says in (
        (["--import_golden", SHIPPED], "--steps 600: --import_golden"),
        (["--export_golden", "none/golden.npz"], "none/golden.npz: there is no such directory"),
    ):
        finished = command("-m", "keras_ref.parity", *words, cwd=tmp_path)
        assert finished.returncode == 2
        (line,) = finished.stderr.splitlines()
        assert says in line


def test_what_a_golden_does_not_hold_is_reported_as_not_checked(tmp_path: Path) -> None:
    golden = Golden.read(SHIPPED)
    answers = {asked: answer for asked, answer in golden.answers.items() if "dtype=float32" not in asked}
    golden = replace(golden, answers=answers)
    with Sides("lit_mnist:LitMNIST", tmp_path, "data", steps=60, golden=golden) as sides:
        (verdict,) = climb(sides, [8], "float32")
        assert not sides.started
    assert not verdict.was_run
    assert [one.what for one in verdict.not_checked] == [
        "optimizer of the training short in float32",
        "optimizer of the training saturated in float32",
    ]


def test_an_answer_comes_back_as_it_was_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    answer = {
        "loaded/kernel": rng.normal(size=(60, 40)),
        "weights/kernel": rng.normal(size=(60, 40)),
        "of/float32": rng.normal(size=(3, 4)).astype(np.float32).astype(np.float64),
        "loss": np.array([1.0, np.nan, np.inf, 1e300]),
        "numbers": np.arange(4),
        "yes": np.array(True),
        "text": np.array("one"),
        "texts": np.array(["one", "three"]),
        "scalar": np.array(0.1),
    }
    kept = thinned("trace/x", answer)
    Golden(tmp_path / "golden.npz", {"seed": 0}, {}, {"trace/x": kept}, {"cases/a": b"abc"}).write()
    golden = Golden.read(tmp_path / "golden.npz")
    back = golden.answer("trace/x")
    assert golden.files == {"cases/a": b"abc"}
    assert back.whole == {"weights/kernel": (60, 40)}
    assert len(back["weights/kernel"]) <= KEPT
    for name, array in answer.items():
        expected = array if name != "weights/kernel" else thin(name, array)
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], expected, equal_nan=array.dtype.kind == "f"), name


@pytest.mark.parametrize("shape", [(1176, 128), (3, 3, 8, 16), (1000, 10), (2, 128, 3), (257, 1)])
def test_every_row_and_column_of_a_thinned_array_may_show(shape: tuple[int, ...]) -> None:
    places = thin("weights/kernel", np.arange(np.prod(shape)).reshape(shape))
    assert KEPT / 2 - 1 <= places.size <= KEPT
    for axis, index in enumerate(np.unravel_index(places.ravel(), shape)):
        assert len(set(index.tolist())) >= min(shape[axis], KEPT // 2) * 0.8


@pytest.mark.parametrize("name", ["gradients/0/kernel", "probabilities"])
def test_an_element_of_a_thinned_array_is_named_by_its_place(name: str) -> None:
    whole, places = np.zeros((3000, 10)), np.arange(30_000).reshape(3000, 10)
    theirs = Recorded({name: thin(name, whole)}, {name: whole.shape})
    place = np.unravel_index(thin(name, places).ravel()[-1], whole.shape)
    ours = {name: whole.copy()}
    ours[name][place] = 1.0
    apart, where = largest_difference(alike(ours, theirs)[name], theirs[name])
    (one,) = placed([Comparison(f"short: {name}{where}", apart, 1e-12)], theirs)
    assert one == Comparison(f"short: {name}[{place[0]}, {place[1]}]", 1.0, 1e-12)


@pytest.mark.parametrize("rows", [10_000, 3000, 1000, 64])
def test_of_predictions_as_many_rows_are_kept_as_tell_chance_from_error(rows: int) -> None:
    """Of 26 images a right port was stopped in float32 after 6,000 steps, at 5.9 and 18 times Keras' error."""
    kept = thin("probabilities", np.arange(rows * 10).reshape(rows, 10))
    assert min(rows, 500) <= len(kept) <= KEPT_ROWS
    assert (kept == kept[:, :1] + np.arange(10)).all()  # whole rows


def test_what_a_layer_gives_is_thinned_with_its_activation_function_applied_once_more_too() -> None:
    given = np.random.default_rng(0).normal(size=(100, 40))
    name = "activations/0/one"
    theirs = Recorded({name: thin(name, np.tanh(given))}, {name: given.shape})
    ours = {name: given, f"{name}|tanh": np.tanh(given)}
    compared = list(forward(alike(ours, theirs), {**theirs, "loaded/one/kernel": given}))
    assert [one.holds for one in compared] == [True]


def test_another_shape_is_named_as_it_is() -> None:
    theirs = Recorded({"weights/kernel": thin("weights/kernel", np.zeros((40, 50)))}, {"weights/kernel": (40, 50)})
    ours = {"weights/kernel": np.zeros((50, 40))}
    apart, where = largest_difference(alike(ours, theirs)["weights/kernel"], comparable(theirs, ours)["weights/kernel"])
    assert (apart, where) == (np.inf, " (50, 40) instead of (40, 50)")

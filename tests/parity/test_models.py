"""The ladder for other models than the documented one: right ports climb it, wrong ones are stopped where predicted."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models.roman_lstm.port import LitRoman
from torch.utils.data import DataLoader, TensorDataset

from keras_ref.parity.comparisons import Comparison
from keras_ref.parity.display import conclusion
from keras_ref.parity.hints import HINTS, hint
from keras_ref.parity.result import Result
from keras_ref.parity.rungs import RUNGS, USUAL, Verdict, climb
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import BRIEF
from lit_mnist import LitMNIST, MNISTDataModule
from lit_mnist.errors import InputError

MODELS = Path(__file__).parent.parent / "models"
PITFALLS: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((MODELS / "mutants.yaml").read_text())
PORTS = {"mnist_convnet": "LitConvnet", "bn_stride": "LitBnStride", "roman_lstm": "LitRoman"}
MAPPED = "block/first: layers.inner.0\nblock/second: layers.inner.1\n"
LAYERS = ["images", "sequences", "volumes", "joined"]
STEPS = 200  # two epochs, a short batch in each; of right and wrong ports, so that Keras trains once for them
MUTANTS = [(model, name) for model, mutants in PITFALLS.items() for name in mutants]


def of_model(sides: Sides, model: str, candidate: str, **changes: int | str) -> Sides:
    names = {"reference": f"models.{model}.original:build_model", "data": f"models.{model}.data:load"}
    return sides.of(f"models.{model}.{candidate}", **names, **changes)  # type: ignore[arg-type]


def of_layers(sides: Sides, name: str, tmp_path: Path) -> Sides:
    layers = tmp_path / "layers.yaml"
    layers.write_text(MAPPED if name == "joined" else "{}")
    names = {"reference": f"models.layers.original:{name}", "data": f"models.layers.data:{name}"}
    return sides.of(f"models.layers.port:{name.capitalize()}", layers=str(layers), **names)  # type: ignore[arg-type]


def climbed(sides: Sides, rungs: list[int], dtype: Any = "float64") -> list[Verdict]:
    verdicts = []
    for verdict in climb(sides, rungs, dtype):
        verdicts.append(verdict)
        if not verdict.holds:
            break
    return verdicts


@pytest.mark.slow
@pytest.mark.parametrize("model", PORTS)
def test_a_port_of_another_model_climbs_to_the_top(model: str, sides: Sides) -> None:
    verdicts = climbed(of_model(sides, model, f"port:{PORTS[model]}", steps=STEPS), USUAL, "both")
    assert all(verdict.holds for verdict in verdicts), verdicts[-1].shown
    assert {verdict.rung.number for verdict in verdicts if verdict.was_run} == set(USUAL)
    beyond = [one.what for verdict in verdicts for one in verdict.not_checked if "beyond" in one.what]
    assert beyond == [f"{name} in float32 beyond {BRIEF} steps" for name in ("trajectory", "history")]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_is_mapped_and_compared(name: str, sides: Sides, tmp_path: Path) -> None:
    verdicts = climbed(of_layers(sides, name, tmp_path), [1, 2, 4, 5, 6, 7, 8, 9, 10])
    assert all(verdict.holds for verdict in verdicts), verdicts[-1].shown
    assert [verdict.was_run for verdict in verdicts] == [True] * 8 + [False]  # these ports log nothing
    assert all("does not log" in one.why for one in verdicts[-1].not_checked)


@pytest.mark.slow
def test_of_a_plain_module_it_is_said_that_its_training_was_not_looked_at(sides: Sides) -> None:
    names = {"reference": "models.layers.original:joined", "data": "models.layers.data:joined"}
    verdicts = climbed(sides.of("models.layers.port:JoinedLayers", **names), USUAL)  # type: ignore[arg-type]
    assert all(verdict.holds for verdict in verdicts), verdicts[-1].shown
    assert [verdict.rung.number for verdict in verdicts if verdict.was_run] == [1, 2, 3, 4, 5]
    assert all("plain nn.Module" in verdict.not_checked[0].why for verdict in verdicts if not verdict.was_run)


class TestedRoman(LitRoman):
    """Reports the loss of the tests."""

    __test__ = False

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", self.loss(self(x), y), on_step=False, on_epoch=True, batch_size=len(x))


class SlowRoman(TestedRoman):
    def __init__(self) -> None:
        super().__init__(learning_rate=1e-5)


@pytest.mark.slow
def test_of_another_model_results_over_seeds_are_compared(sides: Sides) -> None:
    shown = {}
    for name in ("TestedRoman", "SlowRoman"):
        port = of_model(sides, "roman_lstm", "port:LitRoman", steps=60, seeds=4).of(f"test_models:{name}")
        (verdict,) = climb(port, [11])
        assert [one.what for one in verdict.not_checked] == ["test_mae over seeds"]
        shown[name] = verdict.shown
    assert "test loss: mean differs by" in shown["SlowRoman"].what
    assert not shown["SlowRoman"].holds
    assert shown["TestedRoman"].difference < shown["SlowRoman"].difference / 3


class OwnLoader(LitMNIST):
    """A port that brings its own loader: the images as they are, in batches of 100, shuffled."""

    shuffle, batch_size = True, 100

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        return images / 255

    def train_dataloader(self) -> DataLoader:
        data = MNISTDataModule()
        data.setup()
        images, labels = data.train.tensors
        dataset = TensorDataset(self.pixels(images), labels)
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=self.shuffle)


class Normalises(OwnLoader):
    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        return (images / 255 - 0.1307) / 0.3081


class DoesNotShuffle(OwnLoader):
    shuffle = False


class OfSixtyFour(OwnLoader):
    batch_size = 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("port", "says"),
    [
        ("OwnLoader", None),
        ("Normalises", "are none of the data"),
        ("DoesNotShuffle", "another order in each epoch"),
        ("OfSixtyFour", "batches of 100"),
    ],
)
def test_the_loader_that_a_port_brings_is_looked_at_as_it_is(port: str, says: str | None, sides: Sides) -> None:
    (verdict,) = climbed(sides.of(f"test_models:{port}"), [1])
    assert verdict.holds == (says is None), verdict.shown
    if says:
        assert says in verdict.shown.what


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), MUTANTS)
def test_every_wrong_port_is_stopped_where_it_was_predicted(model: str, name: str, sides: Sides) -> None:
    port = of_model(sides, model, f"mutants:{name}", steps=STEPS)
    expected = PITFALLS[model][name]
    last = climbed(port, USUAL)[-1]
    assert not last.holds
    assert last.rung.number == expected["rung"], last.shown
    assert expected["named"] in last.shown.what
    if "hint" in expected:
        assert expected["hint"] in hint(last, port.model)


@pytest.mark.slow
def test_the_page_on_porting_shows_what_is_said_of_its_mistake(sides: Sides) -> None:
    name = "models.bn_stride.mutants:UnbiasedVariance"
    port = of_model(sides, "bn_stride", "mutants:UnbiasedVariance")
    said, _, _ = conclusion(climbed(port, USUAL), [], name, 60, 0, port.model).partition("\nNot checked")
    assert said in (MODELS.parent.parent / "docs" / "porting.md").read_text()


def layer(name: str, kind: str, *inputs: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "class": kind, "config": config, "inputs": list(inputs)}


def test_layers_that_a_port_has_no_modules_for_are_named_where_they_lie_between() -> None:
    layers = [
        layer("conv", "Conv1D"),
        layer("leaky", "LeakyReLU", "conv", negative_slope=0.3),
        layer("gru", "GRU"),
        layer("both", "Concatenate", "leaky", "gru", axis=-1),
        layer("hidden", "Dense", "both", activation="relu"),
    ]
    model = {"layers": layers, "optimizer": "Adam"}
    names = {"conv": 0.0, "gru": 0.0, "hidden": 1.0}
    compared = tuple(Comparison(f"cases: activations/0/{name}[3, 4]", apart, 1e-12) for name, apart in names.items())
    said = hint(Verdict(RUNGS[5], "float64", compared), model)
    expected = "both (Concatenate axis=-1 of leaky, gru), leaky (LeakyReLU negative_slope=0.3)"
    assert said == f"{RUNGS[5].hint}; between it and what agrees Keras has {expected}"


def test_what_regularises_the_loss_is_named_where_the_loss_differs() -> None:
    layers = [layer("hidden", "Dense", kernel_regularizer={"class": "L1", "l1": 0.001}, bias_regularizer=None)]
    verdict = Verdict(RUNGS[6], "float64", (Comparison("cases: loss[0]", 1.0, 1e-12),))
    assert hint(verdict, {"layers": layers, "optimizer": "Adam"}).endswith(
        "; Keras adds L1 l1=0.001 of hidden's kernel"
    )


def test_every_wrong_port_is_explained_and_every_hint_is_given_to_one() -> None:
    for model, mutants in PITFALLS.items():
        text = (MODELS / model / "mutants.py").read_text()
        assert set(mutants) == {
            line.split("(")[0].removeprefix("class ") for line in text.splitlines() if line[:6] == "class "
        }
    given = [mutant["hint"] for mutants in PITFALLS.values() for mutant in mutants.values() if "hint" in mutant]
    assert not [one.text for one in HINTS if not any(words in one.text for words in given)]


def test_a_result_raises_and_says_where() -> None:
    result = Result((), "nothing was run")
    assert not result.holds
    assert result.first_divergence is None
    with pytest.raises(AssertionError, match="nothing was run"):
        result.raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"reference": "models.layers.data:joined"}, "gives a tuple; expected a keras.Model"),
        ({"reference": "models.layers.broken:not_compiled"}, "the model is not compiled"),
        ({"reference": "models.layers.broken:not_built"}, "the model is not built"),
        ({"reference": "models.layers.broken:raises"}, "ZeroDivisionError: division by zero"),
        ({"reference": "models.layers.broken:two_inputs"}, "the model has 2 inputs; expected one"),
        ({"reference": "models.layers.broken:draws"}, "layer noise (GaussianNoise) draws at random"),
        ({"reference": "models.layers.broken:subclass"}, "a subclass of keras.Model"),
        ({"reference": "models.layers.broken:bidirectional", "layers": "{}"}, "layer both is a Bidirectional"),
        ({"reference": "models.layers.broken:torch_beside_keras"}, "import no torch there"),
        ({"reference": "none.keras"}, "--reference none.keras: "),
        ({"reference": "models.layers.original:no_such"}, "expected package.module:function"),
        ({"data": "models.layers.broken:one_array"}, "returns ndarray; expected (x, y)"),
        ({"data": "models.layers.broken:lists"}, "holds list"),
        ({"data": "models.layers.broken:uneven"}, "arrays of [5, 4] examples"),
        ({"data": "models.layers.broken:nan"}, "holds NaN"),
        ({"data": "models.layers.data:images"}, "the input of the model is [N, "),
        ({"data": "models.layers.broken:texts"}, "holds <U1 (3,)"),
        ({"candidate": "models.layers.port:Images", "layers": "{}"}, "layer shared (Dense) has no module of its name"),
        ({"candidate": "models.layers.broken:raising_port"}, "ZeroDivisionError: division by zero"),
        ({"candidate": "models.layers.data:joined"}, "gives a tuple; expected a LightningModule"),
        ({"layers": "other: inner"}, "there is no layer other"),
        ({"layers": "shared: such_module"}, "there is no module such_module"),
        ({"layers": "[1, 2]"}, "expected lines like"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    names: dict[str, str], says: str, sides: Sides, tmp_path: Path
) -> None:
    given = {"reference": "models.layers.original:joined", "data": "models.layers.data:joined", "layers": MAPPED}
    given |= {"candidate": "models.layers.port:Joined"} | names
    layers = tmp_path / "layers.yaml"
    layers.write_text(given.pop("layers"))
    with pytest.raises(InputError) as error:
        climbed(sides.of(layers=str(layers), **given), [1, 2])  # type: ignore[arg-type]
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1

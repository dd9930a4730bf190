"""A trained model is loaded from any file it may be in, and tested as training tested it."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from trained import trained_model, write_checkpoint

from lit_mnist import LitMNIST, load_model
from lit_mnist.errors import InputError
from lit_mnist.evaluate import by_class, hardest_digits
from lit_mnist.load import load_trained
from lit_mnist.runs.directory import find_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, command: Command) -> Path:
    """A directory whose `runs` holds a short training."""
    directory = tmp_path_factory.mktemp("evaluated")
    flags = ["--max_epochs", 1, "--limit_train_batches", 60, "--run_name", "short", "--accelerator", "cpu"]
    finished = command("-m", "lit_mnist.train", *flags, "--data_dir", data_dir, cwd=directory)
    assert finished.returncode == 0, finished.stderr
    return directory


def test_the_figures_are_those_of_the_training_to_the_last_digit(runs: Path, command: Command) -> None:
    summary = json.loads((runs / "runs" / "short" / "summary.json").read_text())
    flags = ["--accelerator", "cpu", "--json", "figures.json", "--plot", "mistakes.png"]
    finished = command("-m", "lit_mnist.evaluate", *flags, cwd=runs)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    figures = json.loads((runs / "figures.json").read_text())
    for name in ("test_loss", "test_accuracy", "test_images"):
        assert figures[name] == summary[name]
    assert repr(summary["test_loss"]) in finished.stdout
    assert figures["checkpoint"] == "runs/short/checkpoints/step=00060.ckpt"
    counts = np.array(figures["confusion_matrix"])
    assert counts.sum() == 10_000
    assert np.trace(counts) / 10_000 == pytest.approx(summary["test_accuracy"], abs=1e-12)
    for k, row in enumerate(figures["classes"]):
        assert row["recall"] == counts[k, k] / counts[k].sum()
        assert row["precision"] == counts[k, k] / counts[:, k].sum()
        assert row["images"] == counts[k].sum()
    assert len(figures["hardest"]) == 10
    assert (runs / "mistakes.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_the_precision_is_that_of_the_training(
    precision: str, tmp_path: Path, data_dir: Path, command: Command
) -> None:
    flags = ["--max_epochs", 1, "--limit_train_batches", 20, "--run_name", "x", "--precision", precision]
    trained = command("-m", "lit_mnist.train", *flags, "--accelerator", "cpu", "--data_dir", data_dir, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    tested = command("-m", "lit_mnist.evaluate", "--json", "x.json", "--accelerator", "cpu", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    summary = json.loads((tmp_path / "runs" / "x" / "summary.json").read_text())
    assert json.loads((tmp_path / "x.json").read_text())["test_loss"] == summary["test_loss"]


@pytest.mark.slow
def test_weights_of_keras_give_what_keras_reports(tmp_path: Path, data_dir: Path, command: Command) -> None:
    flags = ["--max_epochs", 1, "--batch_size", 1000, "--run_name", "x", "--data_dir", data_dir]
    trained = command("-m", "keras_ref.train", *flags, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    tested = command("-m", "lit_mnist.evaluate", "--json", "x.json", "--accelerator", "cpu", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    summary = json.loads((tmp_path / "runs" / "x" / "summary.json").read_text())
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["test_accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-7)  # Keras' is a float32
    assert figures["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-5)  # summed up in float32


def test_precision_and_recall_are_counted_by_class() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 3, 0])
    figures = by_class(labels, predicted)
    assert figures["classes"][0] == {"class": 0, "precision": 2 / 3, "recall": 2 / 3, "images": 3}
    assert figures["classes"][1] == {"class": 1, "precision": 1 / 2, "recall": 1 / 2, "images": 2}
    assert figures["classes"][2] == {"class": 2, "precision": None, "recall": 0.0, "images": 1}
    assert figures["classes"][3] == {"class": 3, "precision": 0.0, "recall": None, "images": 0}
    assert figures["confusion_matrix"][1] == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]


def test_the_hardest_digit_is_the_one_whose_class_seemed_least_likely() -> None:
    probabilities = np.full((3, 10), 0.01)
    probabilities[0, 4], probabilities[1, 5], probabilities[2, 6] = 0.91, 0.8, 0.7
    probabilities[1, 0] = 0.001
    hardest = hardest_digits(np.array([4, 0, 1]), probabilities)
    assert [one["image"] for one in hardest] == [1, 2, 0]
    assert (hardest[0]["label"], hardest[0]["predicted"]) == (0, 5)


def test_the_newest_run_and_its_newest_checkpoint_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no trained model below runs/; train one \(python -m lit_mnist.train\)"):
        find_checkpoint(None)
    for age, name in enumerate(["a/checkpoints/step=00900.ckpt", "a/checkpoints/step=01000.ckpt", "b/checkpoints/x"]):
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
    assert find_checkpoint(None) == Path("runs/a/checkpoints/step=01000.ckpt")
    keras = tmp_path / "runs" / "c" / "checkpoints" / "epoch=02.keras"
    keras.parent.mkdir(parents=True)
    keras.touch()
    assert find_checkpoint(None) == Path("runs/c/checkpoints/epoch=02.keras")
    assert find_checkpoint("runs/a") == find_checkpoint("runs/a/checkpoints")
    with pytest.raises(InputError, match="runs/b: a directory without checkpoints"):
        find_checkpoint("runs/b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loaded_model_has_the_weights_and_the_dtype_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = trained_model().to(dtype)
    torch.save({"state_dict": ours.state_dict()}, tmp_path / "x.ckpt")
    loaded = load_model(tmp_path / "x.ckpt")
    assert not loaded.training
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == dict.fromkeys(
        ours.state_dict(), dtype
    )
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_model_that_was_compiled_by_itself_is_loaded(tmp_path: Path) -> None:
    module, plain = LitMNIST(), LitMNIST()
    plain.load_state_dict(module.state_dict())
    module.model = torch.compile(module.model)  # type: ignore[assignment]
    torch.save({"state_dict": module.state_dict()}, tmp_path / "x.ckpt")
    loaded = load_model(tmp_path / "x.ckpt").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in plain.state_dict().items())


class Evil:
    def __reduce__(self) -> object:
        return (os.system, ("touch evil",))


def forged(directory: Path) -> dict[str, str]:
    """Write files that are no checkpoint of the model; return what is said of each."""
    state = trained_model().state_dict()
    first, *_ = state
    changed = {
        "other_shape": (state | {first: torch.zeros(2, 2)}, r"conv.weight is \[2, 2\], expected \[6, 1, 3, 3\]"),
        "missing": ({name: state[name] for name in state if name != first}, "conv.weight is missing"),
        "more": (state | {"model.extra": torch.zeros(1)}, r"extra is \[1\], expected none"),
        "not_finite": (state | {first: torch.full_like(state[first], torch.nan)}, "no finite numbers"),
        "mixed": (state | {first: state[first].double()}, "its weights are"),
        "no_tensors": (state | {first: "text"}, "conv.weight is missing"),
    }
    for name, (tensors, _) in changed.items():
        torch.save({"state_dict": tensors}, directory / f"{name}.ckpt")
    torch.save({"state_dict": Evil()}, directory / "evil.ckpt")
    torch.save([1], directory / "list.ckpt")
    (directory / "text.ckpt").write_text("no checkpoint")
    (directory / "empty.ckpt").touch()
    (directory / "empty.keras").touch()
    whole = write_checkpoint(directory / "whole.ckpt").read_bytes()
    (directory / "torn.ckpt").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(directory / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in range(9):
            archive.writestr(f"x/{name}", bytes(2**20))
    said = {f"{name}.ckpt": says for name, (_, says) in changed.items()}
    whole_says = dict.fromkeys(["evil.ckpt", "text.ckpt", "empty.ckpt", "torn.ckpt", "list.ckpt"], "not a whole check")
    return said | whole_says | {"bomb.ckpt": "bytes when unpacked", "empty.keras": "neither a zip nor an HDF5"}


def test_a_file_that_holds_no_such_model_is_refused_in_a_line_and_nothing_in_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lit_mnist.runs.checkpoints.LARGEST_FILE", 2**23)  # of 2**30, to pack the bomb takes seconds
    for name, says in forged(tmp_path).items():
        with pytest.raises(InputError, match=says) as caught:
            load_model(name)
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_of_a_trainer_of_ones_own_is_loaded(tmp_path: Path) -> None:
    import lightning as L

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module = LitMNIST()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    trained = load_trained(tmp_path / "own.ckpt")
    assert torch.equal(trained.module.model.conv.weight, module.model.conv.weight)
    assert trained.settings == {}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no trained model below runs/"),
        (["--ckpt_path", "none"], "none: no such file"),
        (["--ckpt_path", "whole.ckpt", "--json", "no/x.json"], "there is no such directory"),
        (["--ckpt_path", "whole.ckpt", "--plot", "x.doc"], "--plot x.doc"),
        (["--ckpt_path", "whole.ckpt", "--data_dir", "whole.ckpt"], "a file; give a directory"),
        (["--ckpt_path", "whole.ckpt", "--accelerator", "gpu"], "--accelerator gpu"),
        (["--ckpt_path", "whole.ckpt", "--accelerator", "cpu", "--precision", "16-mixed"], "--precision 16-mixed: cpu"),
        (["stray"], "stray: expected a flag"),
    ],
)
def test_a_mistake_gets_one_line(flags: list[str], says: str, tmp_path: Path, command: Command) -> None:
    write_checkpoint(tmp_path / "whole.ckpt")
    finished = command("-m", "lit_mnist.evaluate", *flags, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert says in line

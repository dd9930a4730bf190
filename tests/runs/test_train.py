"""Both training commands, run as a user runs them, and what they leave behind."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, write_small_data_set
from matplotlib.image import imread

from keras_ref.data import load_data
from lit_mnist import LitMNIST

COMMANDS = {"ours": "lit_mnist.train", "theirs": "keras_ref.train"}
# Test accuracy of a single run.
ONE_EPOCH = (0.932, 0.991)  # mean +- 5 standard deviations; 38 seeds: ours 0.9617 +- 0.0058, Keras 0.9619 +- 0.0056
TEN_EPOCHS = (0.973, 0.990)  # 50 seeds: ours 0.9837 +- 0.0016, Keras 0.9839 +- 0.0015, 0.9765 to 0.9863 in all
PICTURES = ["confusion_matrix.png", "curves.png", "misclassified.png"]
FILES = sorted(["checkpoints", "config.yaml", "metrics.csv", "summary.json", *PICTURES])


@pytest.fixture(scope="session")
def one_epoch(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, command: Command) -> dict[str, Path]:
    """The run directory of one epoch of each side, made by its command."""
    output_dir = tmp_path_factory.mktemp("runs")
    for side, module in COMMANDS.items():
        flags = ["--max_epochs", 1, "--data_dir", data_dir, "--output_dir", output_dir, "--run_name", side]
        finished = command("-m", module, *flags)
        assert finished.returncode == 0, finished.stderr
        (output_dir / side / "stdout").write_text(finished.stdout)
        (output_dir / side / "stderr").write_text(finished.stderr)
    return {side: output_dir / side for side in COMMANDS}


@pytest.mark.parametrize("side", COMMANDS)
def test_a_run_directory_holds_what_the_contract_says(side: str, one_epoch: dict[str, Path]) -> None:
    run = one_epoch[side]
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith("std")) == FILES
    assert len(list((run / "checkpoints").iterdir())) == 1
    for picture in PICTURES:
        height, width, _ = imread(run / picture).shape
        assert height > 300
        assert width > 500

    (row,) = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    assert list(row) == ["epoch", "train_loss", "train_accuracy"]
    assert row["epoch"] == "1"
    assert 0.2 < float(row["train_loss"]) < 0.6
    assert 0.8 < float(row["train_accuracy"]) < 0.95

    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_images"] == 10_000
    assert summary["parameters"] == 152_006
    assert (summary["epochs"], summary["batch_size"], summary["seed"]) == (1, 100, 0)
    assert summary["train_seconds"] > 0
    assert summary["dataset_sha256"] == load_data().sha256
    assert "numpy" in summary["versions"]


def test_both_sides_leave_the_same_things(one_epoch: dict[str, Path]) -> None:
    ours, theirs = (json.loads((one_epoch[side] / "summary.json").read_text()) for side in COMMANDS)
    assert list(ours) == list(theirs)
    assert (ours["framework"], theirs["framework"]) == ("lightning", "keras")
    our_config, their_config = (yaml.safe_load((one_epoch[side] / "config.yaml").read_text()) for side in COMMANDS)
    assert their_config.items() - our_config.items() == {("run_name", "theirs")}


@pytest.mark.parametrize("side", COMMANDS)
def test_one_epoch_reaches_its_accuracy_band(side: str, one_epoch: dict[str, Path]) -> None:
    low, high = ONE_EPOCH
    assert low < json.loads((one_epoch[side] / "summary.json").read_text())["test_accuracy"] < high


@pytest.mark.slow
def test_ten_epochs_of_keras_reach_the_accuracy_band(tmp_path: Path, data_dir: Path, command: Command) -> None:
    """Ten epochs of the port: `.ci/run` takes the README at its word, test_distribution.py trains ten seeds."""
    finished = command("-m", "keras_ref.train", "--data_dir", data_dir, "--output_dir", tmp_path, "--run_name", "full")
    assert finished.returncode == 0, finished.stderr
    low, high = TEN_EPOCHS
    assert low < json.loads((tmp_path / "full" / "summary.json").read_text())["test_accuracy"] < high
    assert len((tmp_path / "full" / "metrics.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize("side", COMMANDS)
def test_output_is_calm_and_tells_epoch_result_and_place(side: str, one_epoch: dict[str, Path]) -> None:
    run = one_epoch[side]
    assert (run / "stderr").read_text() == ""
    stdout = (run / "stdout").read_text()
    assert "152,006" in stdout
    summary = json.loads((run / "summary.json").read_text())
    assert f"accuracy {summary['test_accuracy']:.4f} on 10,000 images" in stdout
    assert stdout.endswith(f"Results: {run}\n")
    epoch_lines = [line for line in stdout.splitlines() if "loss" in line and "accuracy" in line and "Test" not in line]
    assert len(epoch_lines) == 1


def test_the_checkpoint_holds_the_model_that_was_evaluated(one_epoch: dict[str, Path]) -> None:
    (checkpoint,) = (one_epoch["ours"] / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    module = LitMNIST.load_from_checkpoint(checkpoint, weights_only=True).eval()
    mnist = load_data()
    with torch.no_grad():
        predicted = module(torch.from_numpy(mnist.test_images[:, None] / np.float32(255))).argmax(1).numpy()
    summary = json.loads((one_epoch["ours"] / "summary.json").read_text())
    assert (predicted == mnist.test_labels).mean() == pytest.approx(summary["test_accuracy"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_its_config_repeats_it(
    tmp_path: Path, data_dir: Path, command: Command
) -> None:
    flags = ["--limit_train_batches", 20, "--max_epochs", 2, "--validation_images", 200, "--output_dir", tmp_path]
    for name, more in {
        "first": ["--data_dir", data_dir, *flags],
        "again": ["--config", tmp_path / "first" / "config.yaml"],
        "other": ["--data_dir", data_dir, *flags, "--seed", 1],
    }.items():
        finished = command("-m", "lit_mnist.train", *more, "--run_name", name)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
    first, again, other = (np.loadtxt(tmp_path / name / "metrics.csv", delimiter=",", skiprows=1)
                           for name in ("first", "again", "other"))  # fmt: skip
    assert first.shape == (2, 5)  # epoch, train_loss, train_accuracy, val_loss, val_accuracy
    np.testing.assert_array_equal(first, again)
    assert (first[:, 1] != other[:, 1]).all()


@pytest.mark.slow
def test_other_data_in_mnists_format_trains_where_it_is_allowed(tmp_path: Path, command: Command) -> None:
    write_small_data_set(tmp_path, training_images=600)
    flags = ["--data_dir", tmp_path, "--output_dir", tmp_path, "--max_epochs", 1]
    for module in COMMANDS.values():
        refused = command("-m", module, *flags, "--run_name", "no")
        assert refused.returncode == 2
        assert "verify_data false" in refused.stderr
        finished = command("-m", module, *flags, "--run_name", module, "--verify_data", "false")
        assert finished.returncode == 0, finished.stderr
        assert json.loads((tmp_path / module / "summary.json").read_text())["test_images"] == 200
    assert not (tmp_path / "no").exists()


def test_fast_dev_run_writes_no_results(tmp_path: Path, data_dir: Path, command: Command) -> None:
    flags = ["--fast_dev_run", "true", "--data_dir", data_dir, "--output_dir", tmp_path / "runs"]
    finished = command("-m", "lit_mnist.train", *flags)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_other_precisions_train(precision: str, tmp_path: Path, data_dir: Path, command: Command) -> None:
    flags = ["--precision", precision, "--limit_train_batches", 20, "--max_epochs", 1, "--data_dir", data_dir]
    finished = command("-m", "lit_mnist.train", *flags, "--output_dir", tmp_path, "--run_name", "run")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.5


def forbid(directory: Path, *modules: str) -> str:
    """Return a path for PYTHONPATH on which the named modules fail as soon as anybody imports them."""
    for module in modules:
        (directory / f"{module}.py").write_text(f"raise RuntimeError('{module} was imported')")
    return str(directory)


@pytest.mark.slow
def test_the_port_never_imports_tensorflow_for_tensorboard_neither(
    tmp_path: Path, data_dir: Path, command: Command
) -> None:
    flags = ["--logger", "tensorboard", "--limit_train_batches", 2, "--max_epochs", 1, "--data_dir", data_dir]
    without_keras = forbid(tmp_path, "tensorflow", "keras")
    finished = command(
        "-m", "lit_mnist.train", *flags, "--output_dir", tmp_path, "--run_name", "r", PYTHONPATH=without_keras
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert list((tmp_path / "r" / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_the_original_never_imports_torch(tmp_path: Path, data_dir: Path, command: Command) -> None:
    flags = ["--max_epochs", 1, "--batch_size", 10_000, "--data_dir", data_dir, "--output_dir", tmp_path]
    without_torch = forbid(tmp_path, "torch", "torchvision", "lightning")
    finished = command("-m", "keras_ref.train", *flags, PYTHONPATH=without_torch)
    assert (finished.returncode, finished.stderr) == (0, "")

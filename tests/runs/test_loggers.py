"""Loggers of Lightning's that --logger names: they are told the metrics, offline; one that is missing gets a line."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import Command, write_small_data_set

from lit_mnist.errors import InputError
from lit_mnist.runs.trainer import _make_logger

READS_MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("lit_mnist").experiment_id])
epochs = len(client.get_metric_history(run.info.run_id, "train_loss"))
print(json.dumps({"name": run.info.run_name, "epochs": epochs, "metrics": run.data.metrics, "params": run.data.params}))
"""


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    write_small_data_set(tmp_path / "data", training_images=600)
    return ["--max_epochs", "2", "--run_name", "told", "--accelerator", "cpu", "--verify_data", "false"]


@pytest.mark.slow
def test_mlflow_is_told_the_metrics(flags: list[str], tmp_path: Path, command: Command) -> None:
    finished = command("-m", "lit_mnist.train", *flags, "--logger", "mlflow", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    asked = command("-c", READS_MLFLOW, f"sqlite:///{tmp_path}/runs/mlflow.db")  # it warns of itself
    assert asked.returncode == 0, asked.stderr
    told = json.loads(asked.stdout.splitlines()[-1])
    summary = json.loads((tmp_path / "runs" / "told" / "summary.json").read_text())
    assert told["name"] == "told"
    assert told["metrics"]["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert told["epochs"] == 2
    assert told["params"]["learning_rate"] == "0.001"


@pytest.mark.slow
def test_wandb_is_told_the_metrics_offline(flags: list[str], tmp_path: Path, command: Command) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")  # a process of its own: wandb writes when it ends
    finished = command("-m", "lit_mnist.train", *flags, "--logger", "wandb", cwd=tmp_path, **environment)
    assert finished.returncode == 0, finished.stderr
    (recorded,) = (tmp_path / "runs" / "told" / "wandb").glob("offline-run-*/run-*.wandb")
    content = recorded.read_bytes()
    for name in (b"train_loss", b"test_accuracy", b"learning_rate"):
        assert name in content


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_logger_that_is_missing_gets_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf'--logger {name}: {name} is not installed; pip install -e "\.\[{name}\]"'):
        _make_logger(name, tmp_path / "run")


def test_wandb_without_a_login_gets_one_line(tmp_path: Path, command: Command) -> None:
    environment = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "online", "NETRC": str(tmp_path / "none")}
    flags = ["--run_name", "x", "--logger", "wandb", "--accelerator", "cpu"]
    finished = command("-m", "lit_mnist.train", *flags, cwd=tmp_path, **environment)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "--logger wandb: nobody is logged in" in finished.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["csv", "none"])
def test_csv_and_none_tell_nobody(name: str, tmp_path: Path) -> None:
    assert _make_logger(name, tmp_path / "run") is False
    assert not list(tmp_path.iterdir())

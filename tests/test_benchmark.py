"""The benchmark: what it makes of the lines of a contestant and of its rounds; what it refuses; a small one, whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Command

import keras_ref.data
from keras_ref.benchmark.contestants import CONTESTANTS, Contestant, chosen, environment
from keras_ref.benchmark.findings import MARGIN, TARGETS, Round, apart, comparison, targets
from keras_ref.benchmark.measure import Training, read_training, run, write_data
from keras_ref.benchmark.report import markdown, tables
from keras_ref.benchmark.rounds import TIMES_MNIST, Places, play
from keras_ref.data import load_data
from lit_mnist import mnist_files
from lit_mnist.errors import InputError

OURS = [
    (5.0, "│ total   │                        │    152,006 │"),
    (9.0, "Epoch  1/2    3.0 s  loss 0.3324  accuracy 0.9048"),
    (11.0, "Epoch  2/2    2.0 s  loss 0.1358  accuracy 0.9597"),
    (12.0, "Test loss 0.1052, accuracy 0.9672 on 10,000 images, after 5.0 s of training."),
]
KERAS = [
    (6.0, "Training begins"),
    (6.1, "Epoch 1/2"),
    (9.0, "600/600 - 3s - 19ms/step - accuracy: 0.9230 - loss: 0.2799"),
    (9.1, "Epoch 2/2"),
    (11.0, "600/600 - 2s - 10ms/step - accuracy: 0.9719 - loss: 0.0951"),
    (12.0, "Test loss 0.1052, accuracy 0.9672"),
]


@pytest.mark.parametrize("lines", [OURS, KERAS])
def test_the_lines_of_a_contestant_say_how_long_its_parts_took(lines: list[tuple[float, str]]) -> None:
    read = read_training(lines, seconds=13, memory=900)
    assert (read.begins, read.epochs, read.ends) == (6, (3, 2), 2)
    assert (read.warm, read.no_training, read.whole(10)) == (2, 8, 13 + 8 * 2)
    assert (read.test_loss, read.test_accuracy) == (0.1052, 0.9672)


def test_a_contestant_that_says_nothing_is_named_with_its_last_line() -> None:
    with pytest.raises(InputError, match=r"said nothing of its epochs.*Training begins"):
        read_training(KERAS[:1], 13, 900)


def one_round(scale: float, **times: float) -> Round:
    """A round on a machine that is `scale` times as slow: seconds of a warm epoch by contestant."""
    trainings = {
        name: Training(30 * scale, 4 * scale, (2 * epoch * scale, epoch * scale), 2 * scale, 1000, 0.1, 0.97)
        for name, epoch in times.items()
    }
    return Round(trainings, floor=scale, images=60_000, predicting={"ours": 0.1 * scale, "tensorflow": 0.4 * scale})


def test_ratios_are_those_within_a_round_whatever_the_machine_did_between_rounds() -> None:
    rounds = [
        one_round(1, ours=2, tensorflow=8),
        one_round(10, ours=2, tensorflow=10),
        one_round(3, ours=2, tensorflow=4),
    ]
    by_name = {row["name"]: row for row in comparison(rounds)}
    assert by_name["tensorflow"]["epoch_ratio"] == {"median": 0.25, "least": 0.2, "largest": 0.5}
    assert by_name["ours"]["epoch"] == {"median": 6, "least": 2, "largest": 20}
    measured = {row["what"]: row for row in targets(rounds)}
    assert measured["our epoch / Keras on TensorFlow"]["measured"]["median"] == 0.25
    assert measured["our epoch / Keras on TensorFlow"]["holds"]
    assert measured["our step in Trainer.fit / calculated floor"]["measured"]["median"] == pytest.approx(1000 / 300)
    assert measured["predicting the test images / Keras on TensorFlow"]["measured"]["median"] == pytest.approx(0.25)
    assert measured["our epoch / Keras on JAX"]["measured"] is None


def test_a_target_of_more_is_missed_by_less() -> None:
    (target,) = (target for target in TARGETS if target.more)
    assert (target.holds(4.1), target.holds(3.9)) == (True, False)
    assert all((other.holds(other.must * 1.01), other.holds(other.aim)) == (False, True) for other in TARGETS[:4])


def test_who_learned_otherwise_is_named() -> None:
    rows = [{"title": str(x), "test_accuracy": x} for x in (0.97, 0.972, 0.975, 0.97 - 1.5 * MARGIN)]
    assert apart(rows) == [str(0.97 - 1.5 * MARGIN)]
    assert apart([*rows[:3], {"title": "NaN", "test_accuracy": float("nan")}]) == ["NaN"]


class Counted(Places):
    """Contestants that are not run, but written down."""

    def train(self, contestant: Any, *_: Any, **__: Any) -> Training:
        with (self.directory / "log").open("a") as log:
            log.write(f"{contestant.name} ")
        return one_round(1, ours=2).trainings["ours"]

    def ask(self, module: str, *_: object) -> dict[str, Any]:
        return {"floor": 1.0, "warm": 0.1, "products": 0.5} | (
            {"device": "a card"} if module == "lit_mnist.benchmark.predict" else {}
        )


def test_contestants_take_turns_and_each_begins_a_round(tmp_path: Path) -> None:
    turns: list[int] = []
    places = Counted(tmp_path, threads=1, turns=lambda what, number: turns.append(number))
    *earlier, found = play(places, CONTESTANTS[:3], rounds=3, epochs=2, images=60_000)
    order = (tmp_path / "log").read_text().split()
    assert order == ["ours", "tensorflow", "xla", "tensorflow", "xla", "ours", "xla", "ours", "tensorflow"]
    assert [len(one["rounds"]) for one in (*earlier, found)] == [1, 2, 3]  # for one who stops it in between
    assert set(turns) == {len(turns)}  # the bar ends where it should
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    text = markdown(found)
    assert "| Keras on TensorFlow | 1.00 (1.00 to 1.00) |" in text
    assert "| our epoch / Keras on JAX | 0.5 | 0.35 | not measured |  |" in text


def test_on_a_gpu_nothing_is_said_of_what_is_of_a_cpu(tmp_path: Path) -> None:
    places = Counted(tmp_path, threads=1, turns=lambda what, number: None, accelerator="gpu")
    (found,) = play(places, CONTESTANTS[:2], rounds=1, epochs=2, images=60_000)
    assert (found["device"], found["targets"], found["step"], found["floor"]) == ("a card", [], {}, {})
    assert "| target |" not in markdown(found)
    assert [table.columns[0].header for table in tables(found)] == ["ours divided by"]


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda one: one.name)
def test_what_a_contestant_trains_on_is_what_was_asked_for(
    contestant: Contestant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for accelerator in ("cpu", "gpu"):
        words = contestant.command(tmp_path, 2, 100, tmp_path, accelerator)
        flag = words[words.index("--accelerator") + 1] if "--accelerator" in words else None
        assert flag == (None if contestant.name in ("tensorflow", "xla", "jax") else accelerator)
        hidden = environment(1, contestant.environment, accelerator).get("CUDA_VISIBLE_DEVICES")
        assert (hidden == "") == (accelerator == "cpu")


def test_the_largest_data_set_of_the_growth_is_one_that_is_read() -> None:
    assert max(TIMES_MNIST) * 60_000 * 784 < min(mnist_files.LARGEST_FILE, keras_ref.data.LARGEST_FILE)


def test_the_data_set_is_cut_or_repeated(tmp_path: Path) -> None:
    mnist = load_data()
    small = mnist._replace(train_images=mnist.train_images[:50], train_labels=mnist.train_labels[:50])
    for count in (30, 120):
        write_data(small, count, tmp_path / str(count))
        images = load_data(tmp_path / str(count), verify=False).train_images
        assert (images == mnist.train_images[[i % 50 for i in range(count)]]).all()


def test_a_failing_contestant_is_named_with_what_it_said() -> None:
    with pytest.raises(InputError, match=r"-c .* ended with code 3: reason"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('reason'); sys.exit(3)"], dict(os.environ))


def test_contestants_have_the_same_threads_and_nothing_of_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    variables = environment(2, {"KERAS_BACKEND": "jax"})
    assert (variables["OMP_NUM_THREADS"], variables["KERAS_BACKEND"]) == ("2", "jax")
    assert "KERAS_MAX_EPOCHS" not in variables


def test_who_is_not_installed_does_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jax" else SimpleNamespace())
    assert [one.name for one in chosen(None)] == ["ours", "tensorflow", "xla", "loop", "lightning"]
    with pytest.raises(InputError, match="--only jax: jax is not installed"):
        chosen(["jax"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--only", "[keras]"], "--only keras: no such contestant; expected some of ours, tensorflow"),
        (["--epochs", "1"], "--epochs 1: the first epoch warms up"),
        (["--images", "100"], "--images 100: expected 200 to 60,000"),
        (["--threads", "5000"], "--threads 5000: this machine lends"),
        (["--output", "a_file"], "--output a_file: "),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    flags: list[str], says: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "a_file").touch()
    finished = command("-m", "keras_ref.benchmark", *flags, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"python -m keras_ref.benchmark: error: {says}")


def test_an_interrupt_ends_the_contestant_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = "import os, time; open(r'PIDS', 'a').write(f'{os.getpid()} '); time.sleep(60)".replace("PIDS", str(pids))
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    code = (
        "import os, sys\n"
        "from keras_ref.benchmark.measure import run\n"
        "from lit_mnist.runs.signals import exit_on_signals\n"
        "exit_on_signals()\n"
        f"run([sys.executable, '-c', {parent!r}], dict(os.environ))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text().endswith(" ")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    (pid,) = map(int, pids.read_text().split())
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:  # until it is reaped
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_the_smallest_benchmark(tmp_path: Path, command: Command) -> None:
    flags = ["--rounds", "1", "--images", "200", "--only", "[tensorflow,xla,loop,lightning]", "--threads", "1"]
    finished = command("-m", "keras_ref.benchmark", *flags, "--output", tmp_path / "out")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [row["name"] for row in found["contestants"]] == ["ours", "tensorflow", "xla", "loop", "lightning"]
    assert found["flags"]["threads"] == 1
    assert not {"output", "data_dir"} & found["flags"].keys()
    assert {"torch", "keras", "tensorflow"} <= found["versions"].keys()
    for name, training in found["rounds"][0]["trainings"].items():
        assert len(training["epochs"]) == 2, name
        assert 0 < training["begins"] < training["seconds"], name
        assert 200 < training["memory"] < 10_000, name
    assert sum(found["step"][name]["median"] for name in ("forward and loss", "backward")) > 0
    assert "| lit_mnist.train |" in (tmp_path / "out" / "benchmark.md").read_text()
    assert (tmp_path / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")

"""A run that was killed, stopped or refused: what goes on ends bit by bit as if nothing had happened."""

import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Flags, Training, checkpoints, command_line, is_running, last_step, step_of
from conftest import Command, write_small_data_set

from lit_mnist.errors import InputError
from lit_mnist.runs.checkpoints import UnusableCheckpointError, WholeFiles, read_checkpoint
from lit_mnist.train import train

STEPS = 12  # of an epoch
FLAGS: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 3,
    "limit_train_batches": STEPS,
    "validation_images": 200,
    "checkpoint_every_n_steps": 5,
}


@pytest.fixture(scope="module")
def flags(data_dir: Path) -> Flags:
    return FLAGS | {"data_dir": str(data_dir)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, flags: Flags) -> Path:
    """A run that nothing happened to."""
    output_dir = tmp_path_factory.mktemp("whole")
    train(**flags, output_dir=str(output_dir), run_name="run")
    return output_dir / "run"


@pytest.fixture
def cut(tmp_path: Path, whole: Path) -> Callable[[int], Flags]:
    """Return a function that makes the directory of a run that was killed after a step; it returns its flags."""

    def make(step: int) -> Flags:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        for path in checkpoints(whole):
            if step_of(path) <= step:
                shutil.copy(path, tmp_path / "run" / "checkpoints")
        return {"output_dir": str(tmp_path), "run_name": "run", "resume": "last"}

    return make


def assert_same(run: Path, whole: Path, *, also_between: bool = False) -> None:
    """All that two runs left behind is the same to the last bit, but for seconds and threads."""
    ours, theirs = ({path.name: path for path in checkpoints(x)} for x in (run, whole))
    assert also_between or ours.keys() == theirs.keys()
    assert max(ours) == max(theirs)
    for name in ours.keys() & theirs.keys():
        ours_content, theirs_content = (torch.load(x[name], weights_only=True) for x in (ours, theirs))
        for content in (ours_content, theirs_content):
            assert content["callbacks"]["EpochResults"].pop("seconds") > 0
            assert content["callbacks"]["Checkpoints"].pop("threads") > 0
        assert_equal(ours_content, theirs_content, name)
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    summaries = [json.loads((x / "summary.json").read_text()) | {"train_seconds": 0} for x in (run, whole)]
    assert summaries[0] == summaries[1]
    assert not [path for path in run.rglob(".*") if path.name.endswith((".part", ".lock"))]


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("step", [5, STEPS, 20, 35, 3 * STEPS])
def test_a_resumed_run_ends_as_one_never_interrupted(step: int, flags: Flags, cut: Any, whole: Path) -> None:
    resume = cut(step)
    run = Path(resume["output_dir"], "run")
    (run / "checkpoints" / ".step=00005.ckpt.part").write_bytes(b"torn")
    (run / "metrics.csv").write_text("of the epoch that was not saved")
    train(**flags, **resume)
    assert_same(run, whole)


def test_another_number_of_threads_is_reported(
    flags: Flags, cut: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    train(**flags, **cut(20))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"with another number of threads ({threads + 1}, before {threads})" in line
    assert f"OMP_NUM_THREADS={threads}" in line


def test_a_named_checkpoint_is_resumed_in_its_own_run(
    flags: Flags, cut: Any, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(cut(20)["output_dir"], "run")
    train(**flags, resume=str(run / "checkpoints" / "step=00010.ckpt"))
    stdout, stderr = capsys.readouterr()
    assert ("after step 10, from" in stdout, stderr) == (True, "")
    assert_same(run, whole)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["output_dir"], config["run_name"], config["resume"]) == (str(run.parent), "run", None)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(flags: Flags, cut: Any, whole: Path) -> None:
    resume = cut(0)
    train(**flags, **resume)
    assert_same(Path(resume["output_dir"], "run"), whole)


@pytest.mark.slow
def test_more_epochs_end_as_if_asked_for_at_once(flags: Flags, cut: Any, whole: Path, tmp_path: Path) -> None:
    train(**flags | {"max_epochs": 1}, output_dir=str(tmp_path), run_name="run")
    train(**flags, output_dir=str(tmp_path), run_name="run", resume="last")
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_64_bits_are_not_rounded_on_the_way(flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"precision": "64-true", "max_epochs": 1, "output_dir": str(tmp_path)}
    train(**flags, run_name="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    train(**flags, run_name="run", resume=str(tmp_path / "run" / "checkpoints" / "step=00005.ckpt"))
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("devices", "precision"),
    [
        pytest.param(2, "32-true", marks=pytest.mark.slow),
        pytest.param(3, "64-true", marks=pytest.mark.slow),
    ],
)
def test_several_devices_resume_as_one_does(
    devices: int, precision: str, flags: Flags, tmp_path: Path, command: Command
) -> None:
    flags = flags | {"devices": devices, "precision": precision, "batch_size": 96, "max_epochs": 2}
    # 59,760 images are left to train on: the last batch of an epoch, too, divides among two and among three devices.
    flags |= {"output_dir": tmp_path, "checkpoint_every_n_steps": 3, "validation_images": 240}
    finished = command(*command_line(flags | {"run_name": "whole"}))
    assert (finished.returncode, finished.stderr) == (0, "")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for step in (3, 6):
        shutil.copy(tmp_path / "whole" / "checkpoints" / f"step={step:05}.ckpt", tmp_path / "run" / "checkpoints")
    finished = command(*command_line(flags | {"run_name": "run", "resume": "last"}))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "Resumes after step 6," in finished.stdout
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_so_that_it_can_be_resumed(
    signum: int,
    code: int,
    flags: Flags,
    tmp_path: Path,
    whole: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "max_epochs": 500}
    process = Training(flags)
    process.wait_for_step(7)
    process.process.send_signal(signal.SIGSTOP)  # it would train hundreds of steps meanwhile, all to be repeated below
    # Meanwhile nobody else can go on with it, nor begin another one there.
    monkeypatch.setenv("RANK", "1")  # left over from something else, and of no meaning here
    for more, reason in (({"resume": "last"}, "another process"), ({}, "exists already")):
        with pytest.raises(InputError, match=reason):
            train(**flags | {"output_dir": str(tmp_path)} | more)
    monkeypatch.delenv("RANK")
    process.process.send_signal(signal.SIGCONT)
    process.wait_for_step(last_step(tmp_path / "run") + 1)
    process.process.send_signal(signum)
    returncode, stderr = process.finish()
    assert returncode == code
    (line,) = stderr.splitlines()
    assert line.startswith("To resume: python -m lit_mnist.train ")
    stopped_at = last_step(tmp_path / "run")
    assert stopped_at > 7
    if signum == signal.SIGINT:
        return
    epochs = math.ceil((stopped_at + 1) / STEPS)
    arguments = shlex.split(line.removeprefix("To resume: python "))
    finished = command(*arguments, "--max_epochs", epochs)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"Resumes after step {stopped_at}," in finished.stdout
    train(**FLAGS | {"data_dir": flags["data_dir"], "max_epochs": epochs}, output_dir=str(tmp_path), run_name="whole")
    assert_same(tmp_path / "run", tmp_path / "whole", also_between=True)


def test_a_second_signal_ends_the_run_at_once(flags: Flags, tmp_path: Path) -> None:
    process = Training(flags | {"output_dir": tmp_path, "run_name": "run", "max_epochs": 500})
    process.wait_for_step(7)
    process.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    before = checkpoints(process.run)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.process.send_signal(signum)
    assert process.finish()[0] in (130, 143)  # the system delivers both at once, in no order
    assert checkpoints(process.run) == before


def test_a_signal_before_and_after_the_training_ends_with_its_code(flags: Flags, tmp_path: Path, whole: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run"}
    process = Training(flags, sys.executable)
    time.sleep(1)  # in the middle of the imports
    process.process.send_signal(signal.SIGINT)
    assert process.finish() == (130, "")

    process = Training(flags)
    process.wait_for_step(3 * STEPS)
    process.process.send_signal(signal.SIGTERM)
    returncode, stderr = process.finish()
    assert returncode == 143
    assert re.fullmatch("To resume: .*\n", stderr)
    assert not (tmp_path / "run" / "summary.json").exists()
    train(**flags | {"output_dir": str(tmp_path), "resume": "last"})
    assert_same(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def whole_on_two(tmp_path_factory: pytest.TempPathFactory, flags: Flags) -> tuple[Flags, Path]:
    """The flags of a run on two devices that nothing happened to, and that run."""
    flags = flags | {"devices": 2, "batch_size": 96, "max_epochs": 6}
    process = Training(flags | {"output_dir": tmp_path_factory.mktemp("two"), "run_name": "run"})
    assert process.finish() == (0, "")
    return flags, process.run


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["first", "second", "all"])
def test_two_devices_stop_together(signum: int, to: str, whole_on_two: tuple[Flags, Path], tmp_path: Path) -> None:
    flags, whole = whole_on_two
    flags = flags | {"output_dir": tmp_path, "run_name": "run"}
    process = Training(flags | {"max_epochs": 500})
    process.wait_for_step(7)
    children = process.children()
    for pid in {"first": [process.process.pid], "second": children, "all": [process.process.pid, *children]}[to]:
        os.kill(pid, signum)
    returncode, stderr = process.finish()
    assert returncode == 128 + signum
    assert re.fullmatch("To resume: .*\n", stderr)
    assert not any(map(is_running, children))
    assert last_step(tmp_path / "run") > 7
    if signum == signal.SIGINT:
        return
    for path in checkpoints(tmp_path / "run"):  # on a slow machine it may have come past the end of the other
        if step_of(path) >= 6 * STEPS:
            path.unlink()
    assert Training(flags | {"resume": "last"}).finish() == (0, "")
    assert_same(tmp_path / "run", whole, also_between=True)


@pytest.mark.slow
def test_a_run_killed_24_times_ends_as_one_never_interrupted(flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"limit_train_batches": 120, "checkpoint_every_n_steps": 1, "output_dir": tmp_path}
    assert Training(flags | {"run_name": "whole"}).finish() == (0, "")
    rng = random.Random(0)
    run, resume, torn = tmp_path / "run", {}, 0
    for _ in range(24):
        before = last_step(run)
        process = Training(flags | {"run_name": "run"} | resume)
        moment = rng.choice(["at any time", "after a step", "after a step", "within a save"])
        if moment != "at any time":
            process.wait_for_step(before + 1)
        if moment == "within a save":
            while not list(run.glob("checkpoints/.*.part")) and process.process.poll() is None:
                pass
        else:
            time.sleep(rng.uniform(0, 0.2))
        process.process.kill()
        assert process.finish() == (-signal.SIGKILL, "")
        torn += bool(list(run.glob("checkpoints/.*.part")))
        resume = {"resume": "last"} if (run / "checkpoints").is_dir() else {}
    assert last_step(run) < 360, "the run was over before the last kill"
    print(f"24 kills, {torn} of them within a save, the last at step {last_step(run)}")
    assert torn > 0
    assert Training(flags | {"run_name": "run"} | resume).finish() == (0, "")
    assert_same(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("batch_size", 50, "--batch_size 100, now 50"),
        ("seed", 1, "--seed 0, now 1"),
        ("learning_rate", 0.002, "--learning_rate 0.001, now 0.002"),
        ("validation_images", 100, "--validation_images 200, now 100"),
        ("precision", "64-true", "--precision 32-true, now 64-true"),
        ("limit_train_batches", 13, "--limit_train_batches 12, now 13"),
        ("deterministic", True, "--deterministic False, now True"),
        ("fused", False, "--fused True, now False"),
        ("devices", 2, "--devices 1, now 2"),
        ("max_epochs", 1, "--max_epochs 1: "),
    ],
)
def test_other_settings_are_refused(flag: str, value: Any, named: str, flags: Flags, cut: Any) -> None:
    resume = cut(20)
    with pytest.raises(InputError, match=re.escape(named)):
        train(**flags | {flag: value}, **resume)
    assert last_step(Path(resume["output_dir"], "run")) == 20


def test_a_run_of_a_release_without_the_fast_path_is_resumed_without_it(flags: Flags, cut: Any) -> None:
    resume = cut(35)
    path = Path(resume["output_dir"], "run", "checkpoints", "step=00035.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["Checkpoints"]["settings"]["--fused"]
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="--fused False, now True"):
        train(**flags, **resume)
    train(**flags, **resume, fused=False)
    assert last_step(Path(resume["output_dir"], "run")) == 3 * STEPS


def test_another_data_set_is_refused(flags: Flags, cut: Any, tmp_path: Path) -> None:
    write_small_data_set(tmp_path / "other", training_images=6000)
    with pytest.raises(InputError, match=r"data set in --data_dir, sha256 [0-9a-f]{64}, now [0-9a-f]{64}"):
        train(**flags | {"data_dir": str(tmp_path / "other"), "verify_data": False}, **cut(20))


def test_a_finished_run_says_so(whole: Path, flags: Flags, command: Command) -> None:
    arguments = command_line(flags | {"output_dir": whole.parent, "run_name": "run", "resume": "last"})
    finished = command(*arguments)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert "finished with 3 epochs" in line


def test_a_directory_with_the_checkpoints_of_something_else_is_left_alone(flags: Flags, cut: Any) -> None:
    resume = cut(0)
    (Path(resume["output_dir"]) / "run" / "checkpoints" / "epoch=01.keras").touch()
    with pytest.raises(InputError, match=r"no checkpoint in .* is usable"):
        train(**flags, **resume)
    assert not (Path(resume["output_dir"]) / "run" / "metrics.csv").exists()


def test_no_checkpoint_is_written_twice(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    save = WholeFiles.save_checkpoint

    def noted(self: WholeFiles, checkpoint: dict[str, Any], path: Path, **more: Any) -> None:
        written.append(path.name)
        save(self, checkpoint, path, **more)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", noted)
    train(**flags | {"checkpoint_every_n_steps": 6, "max_epochs": 2}, output_dir=str(tmp_path), run_name="run")
    # The one of a last batch would be of before the validation.
    assert written == [f"step={step:05}.ckpt" for step in (6, 12, 18, 24)]


@pytest.mark.slow
def test_neither_the_environment_nor_a_closed_pipe_changes_a_training(
    flags: Flags, tmp_path: Path, whole: Path
) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run"}
    environment = {"PL_TRAINER_ACCUMULATE_GRAD_BATCHES": "4", "PL_TRAINER_MAX_STEPS": "5", "MPLBACKEND": "nonsense"}
    process = Training(flags, sys.executable, **environment).started
    assert process is not None
    process.stdout.close()  # as head does
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(timeout=120) == 0
    assert_same(tmp_path / "run", whole)


def test_signals_are_handled_as_before_once_the_training_is_over(whole: Path) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"resume": "last"}, "--output_dir and --run_name"),
        ({"resume": "last", "run_name": "none"}, "no run directory"),
        ({"resume": "none.ckpt"}, "no such file"),
        ({"resume": "last", "run_name": "run", "fast_dev_run": True}, "leave out --resume"),
    ],
)
def test_a_resume_of_nothing_is_refused(more: Flags, reason: str, flags: Flags, cut: Any) -> None:
    output_dir = cut(20)["output_dir"]
    with pytest.raises(InputError, match=reason):
        train(**flags, output_dir=output_dir, **more)


def test_a_torn_last_checkpoint_is_passed_over(
    flags: Flags, cut: Any, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = cut(20)
    path = Path(resume["output_dir"], "run", "checkpoints", "step=00020.ckpt")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"step=00020\.ckpt: not a whole checkpoint"):
        train(**flags, **resume | {"resume": str(path)})
    train(**flags, **resume)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Passed over {path}: not a whole checkpoint")
    assert_same(path.parent.parent, whole)


class Payload:
    """Runs code where a pickle is loaded without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('ran')",)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return spoil


def set_at(*keys: Any, value: Any) -> Callable[[Path], None]:
    def change(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return edit(change)


def rewrite(change: Callable[[str, bytes], tuple[str, bytes]]) -> Callable[[Path], None]:
    """Write all members of the archive anew, as `change` returns them."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = [change(name, archive.read(name)) for name in archive.namelist()]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)

    return spoil


WEIGHT = ("state_dict", "model.hidden.weight")
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a whole"),
    "text": (lambda path: path.write_text("checkpoint"), "not a whole"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "not a file"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})), "not a whole"),
    "large": (lambda path: os.truncate(path, 2**31), "bytes"),
    "a byte differs": (
        lambda path: path.write_bytes(
            (c := path.read_bytes())[: len(c) // 2] + bytes([c[len(c) // 2] ^ 1]) + c[len(c) // 2 + 1 :]
        ),
        "not a whole",
    ),
    "TorchScript": (
        rewrite(lambda name, content: (name.replace("data.pkl", "constants.pkl"), content)),
        "not a whole",
    ),
    "payload in the state": (set_at(*WEIGHT, value=Payload()), "not a whole"),
    "payload in the hyperparameters": (set_at("hyper_parameters", "learning_rate", value=Payload()), "not a whole"),
    "no dict": (lambda path: torch.save([1, 2], path), "not a whole checkpoint (it holds a list)"),
    "no settings": (edit(lambda c: c["callbacks"].pop("Checkpoints")), "not a checkpoint of such a training"),
    "other settings": (edit(lambda c: c["callbacks"]["Checkpoints"]["settings"].pop("--seed")), "other names"),
    "no results of epochs": (edit(lambda c: c["callbacks"].pop("EpochResults")), "not a checkpoint of such a training"),
    "no loops": (set_at("loops", "fit_loop", value={}), "not a checkpoint of such a training"),
    "epochs": (set_at("loops", "fit_loop", "epoch_progress", "current", "ready", value=[]), "int() argument"),
    "version": (set_at("pytorch-lightning_version", value="1.0.0"), "written by lightning 1.0.0"),
}
# What is only noticed while Lightning restores it.
FOREIGN: dict[str, Callable[[Path], None]] = {
    "extra weight": set_at("state_dict", "extra", value=torch.zeros(1)),
    "missing weight": edit(lambda c: c["state_dict"].pop("model.conv.bias")),
    "shape": set_at(*WEIGHT, value=torch.zeros(1176, 128)),
    "no tensor": set_at(*WEIGHT, value=1.0),
    "no optimizer": edit(lambda c: c.pop("optimizer_states")),
    "other optimizer": set_at("optimizer_states", 0, "param_groups", value=[]),
    "no rows": edit(lambda c: c["callbacks"]["EpochResults"].pop("rows")),
    "rows": set_at("callbacks", "EpochResults", "rows", value=[1, 2]),
    "seconds": set_at("callbacks", "EpochResults", "seconds", value="long"),
    "threads": set_at("callbacks", "Checkpoints", "threads", value=[]),
    "shape of a moment": set_at("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(1)),
    "averages": set_at("train_averages", value=torch.zeros(0, 3)),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_nothing_but_a_whole_checkpoint_of_such_a_training_is_read(kind: str, tmp_path: Path, whole: Path) -> None:
    good = whole / "checkpoints" / "step=00020.ckpt"
    settings = torch.load(good, weights_only=True)["callbacks"]["Checkpoints"]["settings"]
    path = tmp_path / "step=00020.ckpt"
    shutil.copy(good, path)
    assert read_checkpoint(path, settings, max_epochs=3) == 20
    spoil, reason = SPOILT[kind]
    spoil(path)
    with pytest.raises(UnusableCheckpointError) as error:
        read_checkpoint(path, settings, max_epochs=3)
    message = str(error.value)
    assert message.startswith(f"{path}: not a ")
    assert reason in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_checkpoint_that_cannot_be_restored_is_refused_and_nothing_is_lost(
    kind: str, flags: Flags, tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step=00036.ckpt"
    FOREIGN[kind](path)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"step=00036\.ckpt: cannot be restored") as error:
        train(**flags | {"max_epochs": 4}, output_dir=str(tmp_path), run_name="run", resume=str(path))
    assert len(str(error.value).splitlines()) == 1
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_checkpoints(flags: Flags, cut: Any, whole: Path) -> None:
    resume = cut(12)
    limited = ["bash", "-c", 'ulimit -f 976; exec "$0" "$@"', sys.executable]  # in units of 1,024: less than one takes
    code, stderr = Training(flags | resume, *limited).finish()
    assert code == 1
    (line,) = stderr.splitlines()
    assert re.search(r"error: .*File too large: '.*step=00015.ckpt'", line)
    run = Path(resume["output_dir"], "run")
    assert last_step(run) == 12
    assert not list(run.glob("checkpoints/.*.part"))
    train(**flags, **resume)
    assert_same(run, whole)


def test_results_that_cannot_be_written_are_no_reason_to_train_again(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "curves.png")

    monkeypatch.setattr("lit_mnist.train.write_results", fail)
    with pytest.raises(OSError, match=r"No space left on device: 'curves.png'. To resume: .* --resume last"):
        train(**flags | {"output_dir": str(tmp_path), "run_name": "run"})


def test_a_directory_that_vanishes_ends_the_run_in_one_line(flags: Flags, tmp_path: Path) -> None:
    process = Training(flags | {"output_dir": tmp_path, "run_name": "run", "max_epochs": 500})
    process.wait_for_step(5)
    (tmp_path / "run").rename(tmp_path / "gone")
    returncode, stderr = process.finish()
    assert returncode == 1
    (line,) = stderr.splitlines()
    assert "No such file or directory" in line
    assert last_step(tmp_path / "gone") >= 5

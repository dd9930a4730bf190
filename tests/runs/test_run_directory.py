"""Files of a run are whole or absent, and a run directory belongs to one run."""

from pathlib import Path

import pytest

from lit_mnist.errors import InputError
from lit_mnist.runs.directory import create_run_directory, plan_run_directory
from lit_mnist.runs.files import write_file


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_file(path, b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_directory_that_cannot_be_filled_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_mnist.runs.directory.write_file", full_disk)
    with pytest.raises(InputError, match="No space left"):
        create_run_directory(tmp_path / "run", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "lit_mnist.runs.directory.write_file", "pathlib.Path.rename"])
def test_a_start_that_is_killed_can_be_started_again(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(call, kill)
        with pytest.raises(Killed):
            create_run_directory(tmp_path / "run", {})
    create_run_directory(plan_run_directory(tmp_path, "run", "prefix"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "config.yaml"]


def test_only_the_first_process_of_several_minds_that_the_directory_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="exists already"):
        plan_run_directory(tmp_path, "run", "prefix")
    monkeypatch.setenv("NODE_RANK", "1")
    assert plan_run_directory(tmp_path, "run", "prefix") == tmp_path / "run"


def test_of_two_runs_of_one_name_one_wins(tmp_path: Path) -> None:
    ours, theirs = (plan_run_directory(tmp_path, "same", "prefix") for _ in range(2))
    create_run_directory(ours, {})
    with pytest.raises(InputError, match="same: exists already"):
        create_run_directory(theirs, {})


def test_planning_a_run_makes_nothing(tmp_path: Path) -> None:
    planned = plan_run_directory(tmp_path / "runs", None, "lit_mnist")
    assert planned.name.startswith("lit_mnist-2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "runs/of/today"])
def test_a_file_in_the_place_of_a_directory_is_found_while_planning(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a directory; give one that can be written"):
        plan_run_directory(tmp_path / "file" / below, "run", "prefix")

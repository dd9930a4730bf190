"""Files of a run are whole or absent, and a run directory belongs to one run."""

from pathlib import Path

import pytest

from lit_mnist.cli import InputError
from lit_mnist.run_directory import create_run_directory, plan_run_directory, write_file


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_file(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_runs_of_one_name_one_wins(tmp_path: Path) -> None:
    ours, theirs = (plan_run_directory(tmp_path, "same", "prefix") for _ in range(2))
    create_run_directory(ours, {})
    with pytest.raises(InputError, match="same: exists already"):
        create_run_directory(theirs, {})


def test_planning_a_run_makes_nothing(tmp_path: Path) -> None:
    planned = plan_run_directory(tmp_path / "runs", None, "lit_mnist")
    assert planned.name.startswith("lit_mnist-2")
    assert not list(tmp_path.iterdir())

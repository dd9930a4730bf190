"""The README's commands are ones that can be copied and run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Command

from keras_ref.parity.pitfalls import PITFALLS
from keras_ref.parity.recorded import accuracy_lost
from lit_mnist.data import MNISTDataModule

README = (Path(__file__).parent.parent / "README.md").read_text()
SHELL_LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
OUR_COMMANDS = sorted({part.strip() for line in SHELL_LINES for part in line.split("&&") if "python -m " in part})
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_lines_of_the_front_door_are_there() -> None:
    assert "pip install -e . && python -m lit_mnist.train --accelerator auto" in SHELL_LINES
    assert 'pip install -e ".[test]" && pytest' in SHELL_LINES


@pytest.mark.parametrize("line", OUR_COMMANDS)
def test_every_command_of_the_readme_is_accepted(line: str, command: Command, tmp_path: Path, data_dir: Path) -> None:
    """The number of devices divides the batch, too."""
    words = shlex.split(line.replace("$resume", ""))
    arguments = words[words.index("python") + 1 :]
    if "--config" in arguments:  # of a run that the reader has made
        (tmp_path / arguments[arguments.index("--config") + 1]).parent.mkdir(parents=True)
        (tmp_path / arguments[arguments.index("--config") + 1]).write_text("seed: 1\n")
    if "--help" not in arguments:
        arguments.append("--print_config")  # reads and checks all flags, then stops
    finished = command(*arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    flags = yaml.safe_load(finished.stdout) if "--help" not in arguments else {}
    if "devices" in flags and "num_nodes" in flags:
        data = MNISTDataModule(data_dir, flags["batch_size"], flags["validation_images"])
        data.setup("fit")
        data.check_batches((1 if flags["devices"] == "auto" else flags["devices"]) * flags["num_nodes"])


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_every_python_example_of_the_readme_runs(code: str, command: Command, tmp_path: Path) -> None:
    finished = command("-c", code, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link


def test_the_table_of_pitfalls_says_what_was_recorded() -> None:
    for name, pitfall in PITFALLS.items():
        (row,) = (line for line in README.splitlines() if line.startswith(f"| {pitfall.rung} | {pitfall.mistake} |"))
        lost = accuracy_lost(name)
        assert (lost is None) == (pitfall.rung > 11)  # mistakes of several devices or of resuming
        lost = "" if lost is None else f"{round(100 * lost, 2) + 0.0:.2f}"
        assert row.endswith(f"| {lost} | {pitfall.right} |")

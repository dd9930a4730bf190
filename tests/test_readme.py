"""The commands of the README and of docs/ can be copied and run; their tables say what files say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Command

from keras_ref.benchmark.report import (
    CONTESTANT_TITLES,
    contestant_rows,
    growth_markdown,
    table_in_markdown,
    titles_and_rows,
)
from keras_ref.parity.pitfalls import PITFALLS
from keras_ref.parity.recorded import cost, recorded
from keras_ref.parity.rungs import LIST
from lit_mnist.data import MNISTDataModule

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
FULL_RUN = json.loads((ROOT / "keras_ref" / "parity" / "parity.json").read_text())
PITFALLS_PAGE = (ROOT / "docs" / "pitfalls.md").read_text()
SHELL_LINES = [
    line
    for text in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
OUR_COMMANDS = sorted({part.strip() for line in SHELL_LINES for part in line.split("&&") if "python -m " in part})
PYTHON_BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
for continued in ('load_model("model.ckpt")', 'np.load("in.npz")'):  # such a block goes on from the one before it
    block = next(block for block in PYTHON_BLOCKS if continued in block)
    PYTHON_BLOCKS[PYTHON_BLOCKS.index(block) - 1] += block
    PYTHON_BLOCKS.remove(block)


def test_the_two_lines_of_the_front_door_are_there() -> None:
    assert "pip install -e . && python -m lit_mnist.train --accelerator auto" in SHELL_LINES
    assert 'pip install -e ".[test]" && pytest' in SHELL_LINES


@pytest.mark.parametrize("line", OUR_COMMANDS)
def test_every_command_of_the_pages_is_accepted(line: str, command: Command, tmp_path: Path, data_dir: Path) -> None:
    """The number of devices divides the batch, too."""
    words = shlex.split(line.replace("$resume", ""), comments=True)
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
def test_every_python_example_of_the_pages_runs(code: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code)
    finished = command("-m", "example", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_the_port_to_begin_with_climbs(command: Command, tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON_BLOCKS if "class MyPort" in block)
    (tmp_path / "my_port.py").write_text(code)
    flags = ["--candidate", "my_port:MyPort", "--steps", "20", "--dtype", "float64"]
    finished = command("-m", "keras_ref.parity", *flags, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout


def test_every_file_that_a_page_links_to_exists() -> None:
    for path, text in PAGES.items():
        links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
        assert links
        links += re.findall(r'<img src="([^"]+)"', text)
        for link in links:
            assert (path.parent / link).exists(), link


def test_the_front_door_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_the_table_of_results_says_what_was_recorded() -> None:
    keras, port = recorded()["keras"], recorded()["port"]
    for seed in range(3):
        results = (side[name][seed] for side in (port, keras) for name in ("test_accuracy", "test_loss"))
        assert f"| {seed} | {' | '.join(f'{result:.4f}' for result in results)} |" in README


def test_the_table_of_rungs_says_what_the_full_run_found() -> None:
    assert FULL_RUN["steps"] == 6_000
    assert FULL_RUN["holds"]
    rows = FULL_RUN["rungs"]
    assert {row["number"] for row in rows} == {rung.number for rung in LIST}
    for rung in LIST:
        figures = {row["dtype"]: row["figure"] for row in rows if row["number"] == rung.number}
        (compared,) = {row["compared"] for row in rows if row["number"] == rung.number}
        cells = [str(rung.number), rung.name, compared, figures.get("float64", ""), figures.get("float32", "")]
        assert f"| {' | '.join(cells)} |" in README, cells
    (example,) = (row["figure"] for row in rows if (row["name"], row["dtype"]) == ("optimizer", "float64"))
    assert f'"{example}" says: {example.split()[0]} was found' in README


def test_the_page_on_the_ladder_says_what_the_full_run_found() -> None:
    page = " ".join((ROOT / "docs" / "ladder.md").read_text().split())
    largest = {row["number"]: row["figure"].split()[0] for row in FULL_RUN["rungs"] if row["dtype"] == "float64"}
    assert f"differ by up to {largest[7]} (a gradient), and over the 6,000 steps by {largest[9]}." in page
    limits = list(FULL_RUN["trajectory"]["thresholds"])
    first = {(one["one"], one["other"]): one["first"] for one in FULL_RUN["trajectory"]["parted"]}
    keras, port = (first[f"{side} float32", "keras float64"][limits.index(1e-6)] for side in ("keras", "port"))
    assert f"by more than 1e-6 at step {keras} (from 1), the port's at step {port}." in page
    assert f"part by more than 1e-4 at step {first['port float32', 'keras float32'][limits.index(1e-4)]}." in page


def test_the_tables_of_speed_say_what_was_measured() -> None:
    findings = json.loads((ROOT / "keras_ref" / "benchmark" / "benchmark.json").read_text())
    assert table_in_markdown(CONTESTANT_TITLES, contestant_rows(findings)) in README
    for titles, rows in titles_and_rows(findings):
        assert table_in_markdown(titles, rows) in (ROOT / "docs" / "speed.md").read_text(), titles
    findings = json.loads((ROOT / "keras_ref" / "benchmark" / "gpu.json").read_text())
    assert table_in_markdown(CONTESTANT_TITLES, contestant_rows(findings)) in (ROOT / "docs" / "gpu.md").read_text()


def test_the_tables_of_growth_say_what_was_measured() -> None:
    findings = json.loads((ROOT / "keras_ref" / "benchmark" / "growth.json").read_text())
    for table in growth_markdown(findings).split("\n\n"):
        assert table.strip() in (ROOT / "docs" / "speed.md").read_text()


def test_the_table_of_pitfalls_says_what_was_recorded() -> None:
    off = {one["name"]: one["difference"] for one in FULL_RUN["mutants"]}  # None where it is no number
    for name, pitfall in PITFALLS.items():
        several = pitfall.rung > 11  # mistakes of several devices or of resuming, which cost nothing on one
        assert (cost(name) == "") == several, f"{name}: python -m keras_ref.record --mutants 10 --only [{name}]"
        start, end = f"| {pitfall.rung} | {pitfall.mistake} | ", f" | {cost(name)} | {pitfall.right} |"
        rows = [line for line in PITFALLS_PAGE.splitlines() if line.startswith(start) and line.endswith(end)]
        assert len(rows) == 1, f"docs/pitfalls.md: expected a row {start}...{end}"
        if pitfall.rung > 4 and off.get(name) is not None:  # below it says what it is in words
            assert rows[0] == f"{start}{off[name]:.1g}{end}"


def test_the_mistakes_in_ports_of_other_models_are_listed() -> None:
    mutants = yaml.safe_load((ROOT / "tests" / "models" / "mutants.yaml").read_text())
    for model, mistakes in mutants.items():
        for one in mistakes.values():
            assert f"| {one['rung']} | {model} | {one['mistake']} | {one['right']} |" in PITFALLS_PAGE.splitlines()


def test_the_pages_count_the_wrong_ports() -> None:
    for page in ("README.md", "docs/ladder.md"):
        assert f"{len(PITFALLS)} wrong ports" in (ROOT / page).read_text(), page

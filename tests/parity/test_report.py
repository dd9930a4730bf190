"""The report of a climb: the page, what it is made of, and what is shown in the terminal."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command
from matplotlib.image import imread

from keras_ref.parity.comparisons import OWN_ROUNDING, Comparison
from keras_ref.parity.display import conclusion, in_words, table
from keras_ref.parity.pitfalls import PITFALLS, MutantResult
from keras_ref.parity.recorded import recorded
from keras_ref.parity.report import gather, write_report
from keras_ref.parity.rungs import RUNGS, Verdict, climb
from keras_ref.parity.sides import Sides

STEPS = 60
CONFIG: dict[str, Any] = {"candidate": "lit_mnist:LitMNIST", "rungs": None, "steps": STEPS, "seed": 0, "dtype": "both"}
CONFIG |= {"reference": None, "data": None, "layers": None, "batch_size": 32}
CONFIG |= dict.fromkeys(("compare", "export_golden", "import_golden"))
CONFIG |= {"accelerator": "cpu", "backend": "tensorflow", "backends": False}
CONFIG |= {"seeds": 0, "devices": False, "resume": False, "mutants": False}


class Page(HTMLParser):
    """What of a page is loaded from elsewhere, and whether every element that is opened is closed."""

    VOID = ("meta", "br", "img", "link", "path", "use", "image", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith(("#", "data:")):
                self.elsewhere.append(f"{tag} {name}={value}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(sides: Sides, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all that a climb can find, with short trainings."""
    directory = tmp_path_factory.mktemp("report")
    verdicts = list(climb(sides, [1, 4, 9]))
    mutants = [MutantResult("NoEpsilonHat", 8, "short: after/0/weights/conv/kernel[0]", 1e-4, 1e-12)]
    text = conclusion(verdicts, mutants, CONFIG["candidate"], STEPS, 6000)
    write_report(directory, gather(CONFIG, verdicts, mutants, text, sides))
    return directory


def test_the_page_is_whole_and_loads_nothing(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.elsewhere == []
    assert "url(http" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000
    assert text.count("<svg") == 3


def test_the_page_says_what_was_found(report: Path) -> None:
    found = json.loads((report / "parity.json").read_text())
    text = " ".join(re.sub(r"<[^>]+>", " ", (report / "report.html").read_text()).split())
    assert "holds on rungs 1, 4, 9." in text
    assert "python -m keras_ref.parity --candidate lit_mnist:LitMNIST --steps 60" in text
    for rung in found["rungs"]:
        assert rung["holds"]
        assert rung["figure"].replace("'", "&#39;") in text
    assert found["versions"]["keras"] in text
    assert PITFALLS["NoEpsilonHat"].mistake.rpartition("`")[2] in text  # what is between backticks is code there


def test_the_file_holds_the_losses_of_every_step_and_every_comparison(report: Path) -> None:
    found = json.loads((report / "parity.json").read_text())
    losses = found["trajectory"]["losses"]
    assert set(losses) == {f"{side} {dtype}" for side in ("port", "keras") for dtype in ("float32", "float64")}
    assert {len(values) for values in losses.values()} == {STEPS}
    apart = np.abs(np.subtract(losses["port float64"], losses["keras float64"]))
    assert apart.max() < 1e-12
    assert 0 < np.abs(np.subtract(losses["port float32"], losses["keras float32"])).max() < 1e-4
    assert all(rung["comparisons"] for rung in found["rungs"])
    assert len(found["trajectory"]["tensors"]) == 19


@pytest.mark.parametrize("name", ["losses", "differences", "tensors"])
def test_the_pictures_stand_beside_it(name: str, report: Path) -> None:
    height, width, _ = imread(report / f"{name}.png").shape
    assert height > 300
    assert width > 500


def test_a_report_of_a_failure_names_it_and_needs_no_trajectory(tmp_path: Path, sides: Sides) -> None:
    mutant = sides.of("lit_mnist.mutants:SummedLoss")
    verdicts = list(climb(mutant, [5, 6], dtype="float64"))
    verdicts[-1] = Verdict(RUNGS[6], "float64", (*verdicts[-1].comparisons, Comparison("no number", np.nan, 1e-12)))
    said = conclusion(verdicts, [], "lit_mnist.mutants:SummedLoss", STEPS, 6000)
    write_report(tmp_path, gather(CONFIG, verdicts, [], said, mutant))
    text = (tmp_path / "report.html").read_text()
    assert "First divergence, rung 6 (loss, float64)" in text
    assert "no number" in text
    assert json.loads((tmp_path / "parity.json").read_text())["holds"] is False


def test_the_results_over_seeds_are_drawn(tmp_path: Path, sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "results", lambda side, seeds: recorded()["port"])
    verdicts = list(climb(sides, [11]))
    assert not verdicts[0].not_checked
    said = conclusion(verdicts, [], CONFIG["candidate"], STEPS, 6000)
    write_report(tmp_path, gather(CONFIG | {"seeds": 20}, verdicts, [], said, sides))
    text = (tmp_path / "report.html").read_text()
    assert "50 of\nthe port and 50 of Keras" in text
    assert imread(tmp_path / "distribution.png").shape[0] > 300


def test_a_name_cannot_smuggle_markup_into_the_page(tmp_path: Path, sides: Sides) -> None:
    verdicts = [Verdict(RUNGS[1], "float32", (Comparison("<script>alert(1)</script>", 0, 0),))]
    config = CONFIG | {"candidate": "<b>x</b>:Y"}
    write_report(tmp_path, gather(config, verdicts, [], "<i>said</i>", sides))
    text = (tmp_path / "report.html").read_text()
    assert not re.search("<script|<b>x|<i>said", text)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "short: after/0/weights/hidden/kernel[3, 4]",
            "short training: step 0, weights of hidden/kernel after the update, element [3, 4]",
        ),
        (
            "cases: activations/2/conv[0, 1, 1, 3]",
            "images with edge cases: step 2, what layer conv gives, element [0, 1, 1, 3]",
        ),
        ("trained: gradients/*/conv/bias[5]", "trained weights: any step, gradient of conv/bias, element [5]"),
        (
            "cases: gradients/0/conv/bias (not there)",
            "images with edge cases: step 0, gradient of conv/bias (not there)",
        ),
        ("long: loss[31]", "the training: step 31, loss of the batch"),
        ("short: history/loss[0]", "short training: epoch 1, loss as reported"),
        ("parameters of each layer", "parameters of each layer"),
    ],
)
def test_places_are_named_in_words(what: str, words: str) -> None:
    assert in_words(what) == words


def test_the_table_of_the_terminal_has_a_row_a_rung() -> None:
    verdicts = [
        Verdict(RUNGS[1], "float32", (Comparison("x", 0, 0),)),
        Verdict(RUNGS[5], "float64", (Comparison("x", 1e-15, 1e-12),)),
        Verdict(RUNGS[5], "float32", (Comparison("x", 3.0, 2.0),)),
    ]
    rows = table(verdicts)
    assert rows.row_count == 2
    cells = [list(column.cells) for column in rows.columns]
    assert cells[2] == ["", "1e-15 of 1e-12"]
    assert cells[3] == ["equal", "3 x Keras' error of 2"]
    assert cells[4] == ["holds", "[bold red]FAILS[/]"]


def test_what_holds_within_keras_own_rounding_alone_is_counted() -> None:
    sharp, blunt = Comparison("x", 9e-13, 1e-12), Comparison("y", 1e-7, 3e-7, OWN_ROUNDING)
    assert Verdict(RUNGS[8], "float64", (sharp, blunt)).figure == "9e-13 of 1e-12; 1 of 2 within up to 3e-07"
    text = conclusion([Verdict(RUNGS[8], "float64", (sharp, blunt))], [], "port", 60, 0)
    assert "1 comparisons in float64 hold only within twice Keras' own rounding, up to 3e-07" in text
    assert "own rounding" not in conclusion([Verdict(RUNGS[8], "float64", (sharp,))], [], "port", 60, 0)


def test_the_command_of_the_report_is_accepted(report: Path, command: Command) -> None:
    words = shlex.split(json.loads((report / "parity.json").read_text())["command"])
    finished = command(*words[1:], "--print_config")
    assert finished.returncode == 0, finished.stderr
    assert yaml.safe_load(finished.stdout) | {"data_dir": 0, "report": 0} == CONFIG | {"data_dir": 0, "report": 0}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rungs", "[14]"], "numbers from 1 to"),
        (["--rungs", "[11]"], "--seeds 0"),
        (["--seeds", 1], "--seeds 1"),
        (["--rungs", "[]"], "--rungs []"),
        (["--rungs", "[2]", "--devices", "true"], "--devices True"),
        (["--report", "/proc/no/report"], "--report /proc/no/report"),
        (["--dtype", "float16"], "dtype"),
    ],
)
def test_wrong_flags_get_one_line(flags: list[object], says: str, command: Command) -> None:
    finished = command("-m", "keras_ref.parity", *flags)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert says in line

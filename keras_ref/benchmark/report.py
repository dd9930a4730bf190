"""What a benchmark shows and leaves: tables, the rows for a README, pictures."""

import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from keras_ref.benchmark.contestants import CONTESTANTS
from keras_ref.benchmark.findings import EPOCHS
from keras_ref.parity.report import processor
from lit_mnist.errors import InputError
from lit_mnist.runs.figures import STYLE, TRAIN, VALIDATION
from lit_mnist.runs.files import versions

COLUMNS = {  # of the table of contestants: title, key
    "epoch": "epoch",
    f"whole command, {EPOCHS} epochs": "whole",
    "start and end": "no_training",
    "peak memory": "memory",
}


PLACES = ("data_dir", "output")  # flags that change no figure, and are no one else's business


class Turns:
    """Show what is done now and how much is left; a context manager. In a file, a line a turn."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn())
        self.console = console
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.progress.add_task("begins", total=None)
        self.done = -1  # nothing has begun

    def __enter__(self) -> "Turns":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, what: str, turns: int) -> None:
        self.done += 1
        self.progress.update(self.task, description=what, completed=self.done, total=turns)
        if not self.console.is_terminal:
            line = f"{self.done + 1:>3}/{turns}  {what}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def prepare(directory: Path) -> None:
    """Make the directory of the report.

    Raises:
        InputError: if it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"--output {directory}: {error}; give a directory that can be written") from error


def made_by(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on: command, versions, machine."""
    there: dict[str, str] = {}
    for package in ("torch", "lightning", "torchmetrics", "keras", "tensorflow", "jax", "numpy"):
        try:
            there |= versions(package)
        except PackageNotFoundError:
            continue
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # not on Windows
    return {
        "command": command_line(flags),
        "flags": {name: value for name, value in flags.items() if name not in PLACES},
        "versions": there,
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": load,
        },
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def command_line(flags: Mapping[str, Any]) -> str:
    """Return the command that measures the same again; where data and report are is left to the reader."""
    named = {name: value for name, value in flags.items() if value and name not in (*PLACES, "only")}
    words = [f"--{name} {str(value).lower()}" for name, value in named.items()]
    if flags["only"]:
        words.append(f"--only [{','.join(flags['only'])}]")
    return " ".join(["python -m keras_ref.benchmark", *words])


def in_words(spread: Mapping[str, float] | None, digits: int = 2) -> str:
    """Say a median and its spread."""
    if spread is None:
        return ""
    return f"{spread['median']:.{digits}f} ({spread['least']:.{digits}f} to {spread['largest']:.{digits}f})"


def target_rows(findings: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of targets: what, must, try for, measured, whether it holds."""
    return [
        [
            row["what"],
            f"{row['must']:g}",
            f"{row['aim']:g}",
            in_words(row["measured"]) or "not measured",
            {True: "yes", False: "no", None: ""}[row["holds"]],
        ]
        for row in findings["targets"]
    ]


def contestant_rows(findings: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of contestants: of ours what it takes, of the others ours divided by theirs."""
    units = {"epoch": "s", "whole": "s", "no_training": "s", "memory": "MiB"}
    rows = []
    for row in findings["contestants"]:
        if row["name"] == "ours":
            digits = {"memory": 0, "whole": 1, "no_training": 1}
            cells = [f"{row[key]['median']:.{digits.get(key, 2)}f} {units[key]}" for key in COLUMNS.values()]
        else:
            cells = [in_words(row[f"{key}_ratio"]) for key in COLUMNS.values()]
        rows.append([row["title"], *cells, f"{row['test_accuracy']:.4f}"])
    return rows


def step_rows(findings: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of a step of ours: each part and the floor, in milliseconds."""
    rows = [[name, in_words(spread)] for name, spread in findings["step"].items()]
    if findings["floor"]:  # not on a GPU
        rows.append(["floor", in_words(findings["floor"]["floor"])])
    return rows


CONTESTANT_TITLES = ("ours divided by", *COLUMNS, "test accuracy")
TARGET_TITLES = ("target", "must", "try for", "measured", "holds")
STEP_TITLES = ("a step of ours", "ms")


def titles_and_rows(findings: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Return the three tables: the contestants, the targets, where a step goes."""
    return [
        (CONTESTANT_TITLES, contestant_rows(findings)),
        (TARGET_TITLES, target_rows(findings)),
        (STEP_TITLES, step_rows(findings)),
    ]


def tables(findings: Mapping[str, Any]) -> list[Table]:
    """Return them for the terminal."""
    shown = []
    for titles, rows in titles_and_rows(findings):
        table = Table(*titles)
        for cells in rows:
            table.add_row(*cells)
        shown += [table] if rows else []
    return shown


def markdown(findings: Mapping[str, Any]) -> str:
    """Return the same tables for a README."""
    return "\n".join(table_in_markdown(titles, rows) for titles, rows in titles_and_rows(findings) if rows)


def table_in_markdown(titles: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}", *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"


def said(findings: Mapping[str, Any]) -> list[str]:
    """Say what must not be overlooked in figures."""
    lines = []
    flags, load, cores = findings["flags"], findings["machine"]["load_before"], findings["machine"]["cores"]
    if load is not None and load > cores / 4:
        lines.append(f"Other programs kept this machine busy (load {load:.1f} on {cores} cores): repeat it when idle.")
    if findings.get("apart"):
        lines.append(f"Did not learn as the others did: {', '.join(findings['apart'])}.")
    if "targets" in findings and flags["rounds"] < 5:
        lines.append(f"{flags['rounds']} round(s): 5 or more are needed to tell a figure from chance.")
    if "targets" in findings and flags["epochs"] < EPOCHS:
        lines.append(
            f"The whole command of {EPOCHS} epochs is reckoned from {flags['epochs']}; --epochs {EPOCHS} runs it."
        )
    return lines


def draw(findings: Mapping[str, Any]) -> Figure:
    """Draw how long an epoch and the whole command take, each contestant a bar with its spread."""
    rows = findings["contestants"]
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 0.5 * len(rows) + 1.2))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, key, title in zip(
            axes, ("epoch", "whole"), ("An epoch, s", f"The whole command, {EPOCHS} epochs, s"), strict=True
        ):
            medians = [row[key]["median"] for row in rows]
            below = [row[key]["median"] - row[key]["least"] for row in rows]
            above = [row[key]["largest"] - row[key]["median"] for row in rows]
            colours = [VALIDATION if row["name"] == "ours" else TRAIN for row in rows]
            axis.barh([row["title"] for row in rows], medians, xerr=[below, above], color=colours, ecolor="#3b3b3b")
            axis.set_title(title)
            axis.grid(visible=False, axis="y")
        axes[0].invert_yaxis()
    return figure


GROWTH = {  # of each plot: what is varied, what is drawn, its key
    "batch": ("images in a step", "images a second", "images_per_second"),
    "processes": ("processes, one thread each", "images a second", "images_per_second"),
    "images": ("times MNIST's 60,000 images", "seconds of an epoch", "epoch"),
}


def title(name: str) -> str:
    """Return what a contestant is called in tables and pictures."""
    return next(contestant.title for contestant in CONTESTANTS if contestant.name == name)


def draw_growth(findings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw each way of growing: a figure each, by name."""
    figures = {}
    for kind, (varied, drawn, key) in GROWTH.items():
        points = findings["growth"][kind]
        with rc_context(STYLE):
            figure = Figure(figsize=(5, 3.4))
            axis = figure.subplots()
            for name, colour in (("ours", VALIDATION), ("tensorflow", TRAIN)):
                own = [point for point in points if point["name"] == name]
                if own:
                    values = [point["value"] for point in own]
                    axis.plot(values, [point[key] for point in own], marker="o", color=colour, label=title(name))
            axis.set_xscale("log" if kind == "batch" else "linear")
            if kind != "batch":
                axis.set_xticks(sorted({point["value"] for point in points}))
            axis.set_ylim(bottom=0)
            axis.set_xlabel(varied)
            axis.set_ylabel(drawn)
            axis.legend()
        figures[kind] = figure
    return figures


def growth_markdown(findings: Mapping[str, Any]) -> str:
    """Return a table for each way of growing."""
    parts = []
    for kind, (varied, _, _) in GROWTH.items():
        titles = (varied, "", "epoch, s", "images a second", "peak memory, MiB", "test accuracy")
        rows = [
            [
                f"{point['value']:,}",
                title(point["name"]),
                f"{point['epoch']:.2f}",
                f"{point['images_per_second']:,.0f}",
                f"{point['memory']:,.0f}",
                f"{point['test_accuracy']:.4f}",
            ]
            for point in findings["growth"][kind]
        ]
        parts.append(table_in_markdown(titles, rows))
    return "\n".join(parts)

"""What the ladder shows in the terminal: what both sides are doing, then what was found, in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from keras_ref.parity.comparisons import OWN_ROUNDING
from keras_ref.parity.hints import hint
from keras_ref.parity.pitfalls import PITFALLS, MutantResult
from keras_ref.parity.processes import Side
from keras_ref.parity.recorded import recorded
from keras_ref.parity.rungs import LIST, Verdict
from keras_ref.parity.samples import power
from keras_ref.parity.tolerances import MARGINS


def make_console() -> Console:
    """Return a console for the terminal or, with lines as long as they are, for a file."""
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own; no row of a table should be broken for it
    return console


class Display:
    """Show what both sides are doing while they do it; print lines as they come. A context manager.

    Args:
        console: where to print; bars are drawn on a terminal only.
        candidate: name of our side.
    """

    def __init__(self, console: Console, candidate: str) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.names: dict[Side, str] = {"ours": candidate, "theirs": "Keras"}
        self.tasks: dict[Side, TaskID] = {}
        for side in self.names:
            self._add(side)

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _add(self, side: Side) -> None:
        self.names.setdefault(side, f"Keras on {side}")
        self.tasks[side] = self.progress.add_task(self.names[side], total=None)

    def update(self, side: Side, doing: str, step: int, steps: int) -> None:
        if side not in self.tasks:
            self._add(side)
        description = f"{self.names[side]}: {doing}"
        if step == 0:  # rich stops the clock of a bar that was full once
            self.progress.reset(self.tasks[side], description=description, total=steps or None)
        self.progress.update(self.tasks[side], description=description, completed=step, total=steps or None)

    def print(self, line: str) -> None:
        self.progress.console.print(line, soft_wrap=True, highlight=False, markup=False)


def stated_beforehand(seeds: int) -> str:
    """Say what rung 11 will be able to tell, before any result is there."""
    theirs = recorded()["keras"]
    parts = []
    for name, margin in MARGINS.items():
        spread = float(np.std(theirs[name], ddof=1))
        chance = power(seeds, spread, len(theirs[name]), margin)
        parts.append(f"{name.replace('_', ' ')} within {margin:g} (a run spreads by {spread:.4f}; power {chance:.1%})")
    return (
        f"Rung 11 will compare {seeds} trainings with {len(theirs[name])} recorded ones of Keras: "
        f"{' and '.join(parts)}. Power: how probably an equal port passes. "
        "One that is off by the margin passes with 5 % at most."
    )


def progress_line(verdict: Verdict) -> str:
    rung = verdict.rung
    says = ("holds" if verdict.holds else "FAILS") if verdict.was_run else "not run"
    return f"rung {rung.number:>2}  {rung.name:<16}{verdict.dtype:<8} {says}"


def mutant_line(result: MutantResult) -> str:
    where = f"stopped at rung {result.rung:>2}" if result.rung else "climbed to the top"
    predicted = "as predicted" if result.as_predicted else f"PREDICTED {PITFALLS[result.name].rung}"
    return f"mutant {result.name:<24}{where}, {predicted}"


def table(verdicts: Sequence[Verdict]) -> Table:
    """List what every rung compared, how far the two sides were apart and how far they may be."""
    rows = Table("rung", "compared", "float64", "float32", "verdict")
    for rung in LIST:
        of_the_rung = [verdict for verdict in verdicts if verdict.rung is rung]
        if of_the_rung:
            cells = {"float64": "", "float32": ""} | {verdict.dtype: verdict.figure for verdict in of_the_rung}
            holds = all(verdict.holds for verdict in of_the_rung)
            was_run = any(verdict.was_run for verdict in of_the_rung)
            verdict = ("holds" if holds else "[bold red]FAILS[/]") if was_run else "not run"
            rows.add_row(f"{rung.number:>2} {rung.name}", rung.compared, *cells.values(), verdict)
    return rows


def mapping_lines(mapping: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Say which module stands for which layer, before anything is compared."""
    rows = []
    for layer in model["layers"]:
        kind, name = layer["class"], layer["name"]
        module, how = mapping["layers"].get(name, ("", ""))
        rows.append(f"layer {name} ({kind}): " + (f"{module}, found by {how}" if module else "no module of its own"))
    if mapping["logits"]:
        rows.append("The port gives logits where Keras gives probabilities: they are turned into those to compare.")
    return rows


def conclusion(
    verdicts: Sequence[Verdict],
    mutants: Sequence[MutantResult],
    candidate: str,
    steps: int,
    all_steps: int,
    model: Mapping[str, Any] | None = None,
) -> str:
    """Say what all rungs together mean, and after a failure where to look.

    Args:
        verdicts: of the rungs that were climbed.
        mutants: where the wrong ports were stopped, if they were run.
        candidate: name of the port.
        steps: that were run of the documented training.
        all_steps: that it has; 0 if it was not looked at.
        model: description of the Keras model, where it is another than the documented one.
    """
    lines = []
    last = verdicts[-1]
    if not any(verdict.was_run for verdict in verdicts):
        lines.append(f"Nothing of {candidate} was compared.")
    elif last.holds:
        climbed = sorted({verdict.rung.number for verdict in verdicts if verdict.was_run})
        lines.append(f"{candidate} holds on rung{'s' * (len(climbed) > 1)} {', '.join(map(str, climbed))}.")
        if rounded := [one for verdict in verdicts for one in verdict.within_own_rounding]:
            lines.append(
                f"{len(rounded)} comparisons in float64 hold only within {OWN_ROUNDING}, up to "
                f"{max(one.tolerance for one in rounded):.2g}: a difference below that is not seen there. "
                "docs/porting.md says what to do."
            )
        if steps < all_steps:
            lines.append(
                f"Of the {all_steps:,} steps of the training, {steps:,} were run; --steps {all_steps} runs all."
            )
        lines.extend(
            f"Rung {rung.number} ({rung.name}) was not run: --{rung.flag} {rung.value} runs it."
            for rung in LIST
            if rung.flag and rung.number not in {verdict.rung.number for verdict in verdicts}
        )
    else:
        lines.append(f"{candidate} {last.rung.verdict}.")
        lines.extend(first_divergence(last, model))
    lines.extend(not_checked(verdicts))
    if mutants:
        as_predicted = sum(mutant.as_predicted for mutant in mutants)
        lines.append(f"{as_predicted} of {len(mutants)} wrong ports were stopped at the rung predicted for them.")
    return "\n".join(lines)


def first_divergence(verdict: Verdict, model: Mapping[str, Any] | None = None) -> list[str]:
    """Say where two sides part, and where to look."""
    return [
        f"First divergence, rung {verdict.rung.number} ({verdict.rung.name}, {verdict.dtype}):",
        f"{in_words(verdict.shown.what)}: {verdict.figure}.",
        f"Hint: {hint(verdict, model)}.",
    ]


def not_checked(verdicts: Sequence[Verdict]) -> list[str]:
    """Say what was not looked at, and why."""
    by_reason: dict[str, list[str]] = {}
    for verdict in verdicts:
        for one in verdict.not_checked:
            whats = by_reason.setdefault(one.why, [])
            what = one.what.rpartition(": ")[2]
            if what not in whats:
                whats.append(what)
    return [
        f"Not checked: {', '.join(whats[:4])}{f' and {len(whats) - 4} more' if len(whats) > 4 else ''} ({why})."
        for why, whats in by_reason.items()
    ]


TRAININGS = {
    "cases": "images with edge cases",
    "saturated": "saturated probabilities",
    "tied": "ties in every window",
    "short": "short training",
    "thirds": "short training",
    "long": "the training",
    "brief": "the first steps",
    "trained": "trained weights",
}


def in_words(what: str) -> str:
    """Turn the name of an array and an index into words.

    "short: after/0/weights/hidden/kernel[3, 4]" gives "short training: step 0, weights of hidden/kernel after the
    update, element [3, 4]".
    """
    training, _, name = what.rpartition(": ")
    match = re.fullmatch(r"(activations|training|gradients|after)/(\d+|\*)/(.+?)(\[.*\]| .*)?", name)
    if match:
        kind, step, key, rest = match.groups("")
        where = "any step" if step == "*" else f"step {step}"
        if kind == "after":
            moment, _, key = key.partition("/")
            thing = f"{MOMENTS.get(moment, moment)} of {key} after the update"
        else:
            gives = f"what layer {key} gives{' in training mode' if kind == 'training' else ''}"
            thing = f"gradient of {key}" if kind == "gradients" else gives
        name = f"{where}, {thing}" + (f", element {rest}" if rest.startswith("[") else rest)
    elif match := re.fullmatch(r"(loss|accuracy)\[(\d+)\]", name):
        name = f"step {match[2]}, {match[1]} of the batch"
    elif match := re.fullmatch(r"history/(loss|accuracy)\[(\d+)\]", name):
        name = f"epoch {int(match[2]) + 1}, {match[1]} as reported"
    return f"{TRAININGS.get(training, training)}: {name}" if training else name


MOMENTS = {"weights": "weights", "adam_m": "Adam's m", "adam_v": "Adam's v"}

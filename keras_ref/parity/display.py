"""What the ladder shows in the terminal: what both sides are doing, then what was found, in words."""

import re
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from keras_ref.parity.ladder import power
from keras_ref.parity.pitfalls import PITFALLS, Caught
from keras_ref.parity.plan import RUNGS, STEPS, Verdict
from keras_ref.parity.recorded import recorded
from keras_ref.parity.tolerances import MARGINS
from keras_ref.parity.workers import Side

# Where to look when a rung is the first that does not hold.
HINTS = {
    1: "look at how the data module scales pixels, codes labels and draws the order of the images",
    2: "look at the layer stack: names, padding, sizes",
    3: "look at how the start weights are drawn: Keras draws kernels Glorot uniform and sets biases to zero",
    4: "look at from_keras and to_keras: kernels are transposed, and flattening goes H, W, C in Keras",
    5: "look at the layer named, or at the activation function of the one before it, or at the flatten order",
    6: "the layers agree, the loss does not: look at its reduction, at softmax and at label smoothing",
    7: "the loss agrees, its gradient does not: look for detached tensors, scaling or noise; if it agrees at step 0, "
    "for a parameter that the optimizer does not hold, whose gradients pile up",
    8: "gradients of given weights agree, the update does not: look at epsilon, betas, learning rate, weight decay and "
    "clipping; if it agrees at step 0, at schedules and at what the optimizer forgets between epochs",
    9: "single steps agree, the training does not: look at what changes over time, schedules or state",
    10: "the steps agree, the report does not: look at how batches are averaged over an epoch; less than 1e-7 off in "
    "float64 is a value that was logged in 32 bits",
    11: "given batches agree, trainings of its own do not: look at the order of the images and the start weights",
    12: "one device agrees, several do not: look at how batches, averages and test images are shared out, and whether "
    "all devices draw one order",
    13: "it agrees if nothing happens: look at what a checkpoint holds: m, v, t, place in the epoch, running sums",
}

NOT_RUN = {
    11: "(distribution over seeds) was not run: --seeds 20 runs it",
    12: "(several devices) was not run: --devices true runs it",
    13: "(killed and resumed) was not run: --resume true runs it",
}


def make_console() -> Console:
    """Return a console for the terminal or, with lines as long as they are, for a file."""
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own; no row of a table should be broken for it
    return console


class Display:
    """Show what both sides are doing while they do it; print lines as they come.

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
        self.tasks = {side: self.progress.add_task(name, total=None) for side, name in self.names.items()}

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, side: Side, doing: str, step: int, steps: int) -> None:
        self.progress.update(
            self.tasks[side], description=f"{self.names[side]}: {doing}", completed=step, total=steps or None
        )

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
    name, _ = RUNGS[verdict.number]
    return f"rung {verdict.number:>2}  {name:<16}{verdict.dtype:<8} {'holds' if verdict.holds else 'FAILS'}"


def caught_line(caught: Caught) -> str:
    found = f"stopped at rung {caught.rung:>2}" if caught.rung else "climbed to the top"
    predicted = "as predicted" if caught.as_predicted else f"PREDICTED {PITFALLS[caught.name].rung}"
    return f"mutant {caught.name:<24}{found}, {predicted}"


def table(verdicts: Sequence[Verdict]) -> Table:
    """List what every rung compared, how far the two sides were apart and how far they may be."""
    rows = Table("rung", "compared", "float64", "float32", "verdict")
    for number, (name, compared) in RUNGS.items():
        of_the_rung = [verdict for verdict in verdicts if verdict.number == number]
        if of_the_rung:
            cells = {"float64": "", "float32": ""} | {verdict.dtype: found(verdict) for verdict in of_the_rung}
            holds = all(verdict.holds for verdict in of_the_rung)
            rows.add_row(f"{number:>2} {name}", compared, *cells.values(), "holds" if holds else "[bold red]FAILS[/]")
    return rows


def found(verdict: Verdict) -> str:
    """Say how far the two sides are apart on a rung, and how far they may be."""
    shown = verdict.shown
    if shown.tolerance == 0:
        return "equal" if verdict.holds else "not equal"
    unit = " x Keras' error" if verdict.in_units_of_keras_error else ""
    return f"{shown.difference:.2g}{unit} of {shown.tolerance:g}"


def conclusion(verdicts: Sequence[Verdict], caught: Sequence[Caught], candidate: str, steps: int) -> str:
    """Say what all rungs together mean, and after a failure where to look."""
    lines = []
    last = verdicts[-1]
    if last.holds:
        climbed = sorted({verdict.number for verdict in verdicts})
        lines.append(f"{candidate} holds on rung{'s' * (len(climbed) > 1)} {', '.join(map(str, climbed))}.")
        if steps < STEPS:
            lines.append(
                f"Of the {STEPS:,} steps of the training, the first {steps:,} were run: --steps {STEPS} runs all."
            )
        lines.extend(f"Rung {number} {why}." for number, why in NOT_RUN.items() if number not in climbed)
    else:
        lines.append(f"{candidate} is not the documented model, trained the same way.")
        lines.append(f"First divergence, rung {last.number} ({RUNGS[last.number][0]}, {last.dtype}):")
        lines.append(f"{in_words(last.shown.what)}: {found(last)}.")
        missing = "(not recorded)" in last.shown.what
        hint = (
            "the candidate keeps or logs no such thing: lit_mnist/recording.py says what it has to" if missing else ""
        )
        lines.append(f"Hint: {hint or HINTS[last.number]}.")
    if caught:
        as_predicted = sum(one.as_predicted for one in caught)
        lines.append(f"{as_predicted} of {len(caught)} wrong ports were stopped at the rung predicted for them.")
    return "\n".join(lines)


TRAININGS = {
    "cases": "images with edge cases",
    "saturated": "saturated probabilities",
    "short": "short training",
    "thirds": "short training",
    "long": "the training",
    "trained": "trained weights",
}


def in_words(what: str) -> str:
    """Turn the name of an array and an index into words.

    "short: after/0/weights/hidden/kernel[3, 4]" gives "short training: step 0, weights of hidden/kernel after the
    update, element [3, 4]".
    """
    training, _, name = what.rpartition(": ")
    match = re.fullmatch(r"(activations|gradients|after)/(\d+|\*)/(.+?)(\[.*\]| .*)?", name)
    if match:
        kind, step, key, rest = match.groups("")
        where = "any step" if step == "*" else f"step {step}"
        if kind == "after":
            moment, _, key = key.partition("/")
            thing = f"{MOMENTS[moment]} of {key} after the update"
        else:
            thing = f"gradient of {key}" if kind == "gradients" else f"what layer {key} gives"
        name = f"{where}, {thing}" + (f", element {rest}" if rest.startswith("[") else rest)
    elif match := re.fullmatch(r"(loss|accuracy)\[(\d+)\]", name):
        name = f"step {match[2]}, {match[1]} of the batch"
    elif match := re.fullmatch(r"history/(loss|accuracy)\[(\d+)\]", name):
        name = f"epoch {int(match[2]) + 1}, {match[1]} as reported"
    return f"{TRAININGS.get(training, training)}: {name}" if training else name


MOMENTS = {"weights": "weights", "adam_m": "Adam's m", "adam_v": "Adam's v"}

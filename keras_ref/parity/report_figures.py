"""The pictures of a report, as SVG: both loss curves, the difference per step, per tensor, and over seeds."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_mnist.runs.figures import STYLE

PORT, KERAS, BOTH, LIMIT = "#0b6fa4", "#d9822b", "#3f8f3f", "#3b3b3b"
FLOOR = 1e-17  # where equal losses are drawn on a logarithmic axis


def draw(findings: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the pictures for which there is something to draw, by name.

    Args:
        findings: what `keras_ref.parity.report.gather` returned.
    """
    figures = {}
    if findings["trajectory"]:
        figures["losses"] = loss_curves(findings["trajectory"]["losses"])
        losses, exact = findings["trajectory"]["losses"], findings["trajectory"]["exact"]
        figures["differences"] = differences(losses, findings["float64"], exact)
        figures["tensors"] = tensors(findings["trajectory"]["tensors"], findings["float64"])
    if findings["distribution"]:
        figures["distribution"] = distribution(findings["distribution"])
    return figures


def svg(figure: Figure, name: str) -> str:
    """Return a picture as an element of a page."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]  # the element alone


def loss_curves(losses: Mapping[str, Any]) -> Figure:
    """Draw the loss of every step of both sides over each other, in float64 where there is one."""
    dtype = "float64" if "port float64" in losses else "float32"
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6))
        axis = figure.subplots()
        for side, colour, width in (("keras", KERAS, 3.0), ("port", PORT, 0.8)):
            values = np.asarray(losses[f"{side} {dtype}"], dtype=float)
            steps = np.arange(1, len(values) + 1)
            axis.plot(
                steps,
                values,
                color=colour,
                linewidth=width,
                label=f"{side.replace('keras', 'Keras')}, {dtype}",
                rasterized=True,
            )
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_title("Loss of each batch before its update (nats per image)")
        legend = axis.legend(loc="lower left")
        for handle in legend.legend_handles:
            handle.set_linewidth(2)  # type: ignore[union-attr]  # lines
    return figure


def differences(losses: Mapping[str, Any], tolerance: float, exact: str) -> Figure:
    """Draw how far the losses of a step are apart, on a logarithmic scale, in each precision.

    Args:
        losses: of every step, by side and precision.
        tolerance: of the float64 rungs.
        exact: whether Keras in float64 is "as it is" or "unrounded".
    """
    unrounded = " (unrounded)" if exact == "unrounded" else ""
    pairs = [
        ("port float32", "keras float32", "port and Keras, both in float32", PORT),
        ("keras float32", "keras float64", f"Keras in float32 and in float64{unrounded}", KERAS),
        ("port float64", "keras float64", f"port and Keras, both in float64{unrounded}", BOTH),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 4.2))
        axis = figure.subplots()
        handles = []
        for one, other, label, colour in pairs:
            if one in losses and other in losses:
                steps = min(len(losses[one]), len(losses[other]))
                apart = np.abs(np.asarray(losses[one][:steps], float) - np.asarray(losses[other][:steps], float))
                marker = "." if "float32" in one else "x"
                shown = np.maximum(apart, FLOOR)
                axis.plot(
                    np.arange(1, steps + 1), shown, marker, markersize=1.5, color=colour, alpha=0.5, rasterized=True
                )
                handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=label))
        handles.append(axis.axhline(tolerance, color=LIMIT, linestyle="--", linewidth=1.2, label="allowed in float64"))
        axis.set_yscale("log")
        axis.set_ylim(FLOOR / 2, 10)
        axis.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
        axis.set_xlabel("step")
        axis.set_title("Difference of the loss at each step")
        columns = 1 if max(len(str(handle.get_label())) for handle in handles) > 36 else 2  # longer ones are cut off
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=8.5)
    return figure


def tensors(errors: Mapping[str, Mapping[str, float | None]], tolerance: float) -> Figure:
    """Draw how far every tensor is from Keras' float64 run after the last step."""
    names = list(errors)
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("port float64", "port, float64 (largest difference)", {"color": BOTH, "marker": "x"}),
        ("port float32", "port, float32 (relative error)", {"color": PORT, "marker": "o", "fillstyle": "none"}),
        ("keras float32", "Keras, float32 (relative error)", {"color": KERAS, "marker": "."}),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(6, max(5.4, 1.6 + 0.17 * len(names))))
        axis = figure.subplots()
        for kind, label, style in kinds:
            values = [errors[name].get(kind) for name in names]
            if any(value is not None for value in values):
                drawn = [np.nan if value is None else max(value, FLOOR) for value in values]
                axis.plot(drawn, range(len(names)), linestyle="", markersize=7, label=label, **style)
        axis.axvline(tolerance, color=LIMIT, linestyle="--", linewidth=1.2, label="allowed in float64")
        axis.set_xscale("log")
        axis.set_xticks([1e-16, 1e-12, 1e-8, 1e-4])
        axis.set_yticks(range(len(names)), [name.replace("adam_", "").replace("weights/", "") for name in names])
        axis.invert_yaxis()
        axis.set_title("After the last step: distance from Keras in float64")
        figure.legend(loc="outside lower left", ncols=2, fontsize=8.5)
    return figure


def distribution(runs: Mapping[str, Any]) -> Figure:
    """Draw the test results of every run of both sides, with their means."""
    titles = {"test_accuracy": "Test accuracy", "test_loss": "Test loss"}
    with rc_context(STYLE):
        figure = Figure(figsize=(3 * max(2, len(runs)), 3.2))
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for axis, (name, results) in zip(axes, runs.items(), strict=True):
            for row, (side, label, colour) in enumerate((("keras", "Keras", KERAS), ("port", "port", PORT))):
                values = np.sort(results[side])
                # Runs with nearly the same result are stacked, so that none hides another.
                heights = row + 0.5 * (np.arange(len(values)) % 5 - 2) / 5
                axis.plot(values, heights, "o", color=colour, markersize=4, alpha=0.7)
                axis.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=LIMIT, linewidth=1.5)
                axis.text(values.mean(), row + 0.4, f"{label}, mean {values.mean():.4f}", ha="center", fontsize=8.5)
            keras_mean = float(np.mean(results["keras"]))
            axis.axvspan(
                keras_mean - results["margin"], keras_mean + results["margin"], color="0.9", zorder=0, linewidth=0
            )
            axis.set_yticks([])
            axis.set_ylim(-0.6, 1.7)
            axis.locator_params(axis="x", nbins=4)
            axis.spines["left"].set_visible(False)
            axis.set_title(titles.get(name, name.replace("_", " ")))
    return figure

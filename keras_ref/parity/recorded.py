"""Test results over many seeds, of Keras, of the port and of the wrong ports, as recorded.json holds them.

`python -m keras_ref.record` writes them.
"""

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(str(files("keras_ref.parity") / "recorded.json"))


def accuracy_lost(mutant: str) -> tuple[float, float] | None:
    """Return by how much a wrong port's test accuracy is below the port's with the same seeds, on average; in [-1, 1].

    With it comes half the width of the 95 % interval of that mean, by the t-distribution (a paired t-test's). None if
    it was not recorded.
    """
    from scipy.stats import t

    if mutant not in recorded():
        return None
    wrong = recorded()[mutant]["test_accuracy"]
    lost = np.subtract(recorded()["port"]["test_accuracy"][: len(wrong)], wrong)
    return float(lost.mean()), float(t.ppf(0.975, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost)))


def cost(mutant: str) -> str:
    """Return `accuracy_lost` as a table shows it, in percentage points: "0.28 ± 0.13", or "" if it was not recorded."""
    lost = accuracy_lost(mutant)
    return "" if lost is None else f"{100 * lost[0]:z.2f} ± {100 * lost[1]:.2f}"


@functools.cache
def recorded() -> dict[str, Any]:
    """Return what was recorded: for `keras`, `port` and every mutant `test_accuracy` and `test_loss`, lists [runs].

    And the `versions` and the `machine` that they were trained with.
    """
    return dict(json.loads(RECORDED.read_text()))

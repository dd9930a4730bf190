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


def accuracy_lost(mutant: str) -> float | None:
    """Return by how much a wrong port's test accuracy is below the port's with the same seeds, on average; in [-1, 1].

    None if it was not recorded.
    """
    if mutant not in recorded():
        return None
    wrong = recorded()[mutant]["test_accuracy"]
    right = recorded()["port"]["test_accuracy"][: len(wrong)]
    return float(np.mean(right) - np.mean(wrong))


@functools.cache
def recorded() -> dict[str, Any]:
    """Return what was recorded: for `keras`, `port` and every mutant `test_accuracy` and `test_loss`, lists [runs].

    And the `versions` and the `machine` that they were trained with.
    """
    return dict(json.loads(RECORDED.read_text()))

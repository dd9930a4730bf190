"""The recorded runs: test results over many seeds, of Keras, of the port and of the wrong ports.

`python -m keras_ref.record` writes them.
"""

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

RECORDED = Path(str(files("keras_ref") / "recorded.json"))


@functools.cache
def recorded() -> dict[str, Any]:
    """Return what was recorded: for `keras`, `port` and every mutant `test_accuracy` and `test_loss`, lists [runs]."""
    return dict(json.loads(RECORDED.read_text()))

"""A trained model for tests that need a good one: the weights in the page that ships, of the run that it names."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_mnist import LitMNIST
from lit_mnist.layout import WEIGHTS
from lit_mnist.weights import from_keras

PAGE = Path(__file__).parent.parent / "docs" / "page.html"


def page_data(text: str) -> dict[str, Any]:
    """Return what is in a page beside its code: weights, constants, test digits."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return dict(json.loads(data))


def page_weights(text: str) -> dict[str, np.ndarray]:
    weights = page_data(text)["weights"]
    return {
        key: np.frombuffer(base64.b64decode(weights[key]), dtype="<f4").reshape(shape) for key, shape in WEIGHTS.items()
    }


def trained_model() -> LitMNIST:
    module = LitMNIST()
    module.model.load_state_dict(from_keras(page_weights(PAGE.read_text())))
    return module.eval()


def write_checkpoint(path: Path) -> Path:
    """Write the trained model as a file with the weights of a checkpoint alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": trained_model().state_dict()}, path)
    return path

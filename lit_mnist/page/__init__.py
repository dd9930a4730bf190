"""A page to draw on: one file with the model in it, that asks nothing of a server or of the network.

`page.html` and `page.css` are how it looks, `page.js` is what it does; `digit.js` says in JavaScript what
`lit_mnist.images.normalise` and `lit_mnist.model` say in Python.
"""

import base64
import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_mnist import images
from lit_mnist.mnist_files import read_files
from lit_mnist.weights import to_keras

if TYPE_CHECKING:
    from lit_mnist.load import Trained

EXAMPLES_PER_CLASS = 2


def render(trained: "Trained") -> str:
    """Return the page of a trained model, with the first two test images of each class to try."""
    test_images, labels = read_files("data").test.tensors  # MNIST's own: it is a page for digits
    with torch.inference_mode():
        right = trained.module(test_images).argmax(dim=1) == labels
    first = np.sort(np.concatenate([np.flatnonzero(labels == k)[:EXAMPLES_PER_CLASS] for k in range(10)]))
    by_class = first[np.argsort(labels[first].numpy(), kind="stable")]
    data: dict[str, Any] = {
        "weights": {
            key: _base64(array.astype("<f4")) for key, array in to_keras(trained.module.model.state_dict()).items()
        },
        "box": images.BOX,
        "side": images.SIDE,
        "edge": images.EDGE,
        "examples": [{"label": int(labels[i]), "pixels": _base64(test_images[i].numpy())} for i in by_class],
    }
    source = files("lit_mnist.page")
    parts = {
        "style": (source / "page.css").read_text(),
        "data": json.dumps(data).replace("<", "\\u003c"),  # no text of it can end the script
        "digit.js": (source / "digit.js").read_text(),
        "page.js": (source / "page.js").read_text(),
        "run": escape(trained.run),
        "accuracy": f"{right.double().mean():.2%}",
        "parameters": f"{sum(parameter.numel() for parameter in trained.module.parameters()):,}",
    }
    return re.sub(r"\{\{(.*?)\}\}", lambda marker: parts[marker[1]], (source / "page.html").read_text())


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
